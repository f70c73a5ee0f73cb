//! `arinar-sample`: images and a labelled grid from the EMA weights of a run. Begin with `sampler.rs`.

mod arguments;
mod classes;
mod grid;
mod images;
mod model;
mod output;
mod png;
mod sampler;
mod vae;

pub use arguments::Arguments;
pub use sampler::run;
