//! The exponential moving average of the parameters, which sampling uses.

use tch::Tensor;

use crate::parameters::{FlatParameters, Part};

/// Averages of a part of the parameters, in flat memory laid out like them.
pub struct Ema {
    rate: f64,
    values: Tensor,
}

impl Ema {
    /// Averages of all parameters, starting at their present values.
    pub fn new(parameters: &FlatParameters, rate: f64) -> Self {
        Self::of_part(parameters, &parameters.whole(), rate)
    }

    /// Averages of a part of the parameters.
    pub fn of_part(parameters: &FlatParameters, part: &Part, rate: f64) -> Self {
        Self { rate, values: part.of(parameters.values()).copy() }
    }

    /// The share of the old average that is kept each step.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The averages, one per element of the part.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The averages for the fused update.
    pub(crate) fn values_mut(&mut self) -> &mut Tensor {
        &mut self.values
    }
}
