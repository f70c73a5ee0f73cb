//! Planning a run before it starts: `--check` finds what would end it, `--plan` forecasts what it needs.

pub(crate) mod check;
pub(crate) mod forecast;
