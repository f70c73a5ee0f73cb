//! `arinar-sample`: pictures and a labelled grid from a run's EMA weights.

mod classes;
mod grid;
mod pictures;
pub mod png;
mod progress;

pub use classes::{UnknownClass, choose};
pub use grid::{Row, draw};
pub use pictures::to_pictures;
pub use progress::Progress;
