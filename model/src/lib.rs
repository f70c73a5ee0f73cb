//! ARINAR's tensor code.

pub mod vae;
pub mod weights;
