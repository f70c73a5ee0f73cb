//! Tests that compare the model with golden data from the official code.

mod golden_full_sample;
mod golden_head;
mod golden_keys;
mod golden_schedule;
mod golden_train;
mod golden_vae;
