//! The exponential moving average of the parameters, which sampling uses.

use tch::Tensor;

use crate::parameters::FlatParameters;

/// Averages in flat memory, laid out like the parameters.
pub struct Ema {
    rate: f64,
    values: Tensor,
}

impl Ema {
    /// Starts at the parameters' present values.
    pub fn new(parameters: &FlatParameters, rate: f64) -> Self {
        Self { rate, values: parameters.values().copy() }
    }

    /// The share of the old average that is kept each step.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The averages, `[len]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The averages for the fused update.
    pub(crate) fn values_mut(&mut self) -> &mut Tensor {
        &mut self.values
    }
}
