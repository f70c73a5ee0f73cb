//! The exponential moving average of the parameters, which sampling uses.

use arinar_checkpoint::Part;
use tch::Tensor;

use crate::parameters::FlatParameters;

/// Moving averages of a part of the parameters, in flat memory with the same layout.
pub struct Ema {
    rate: f64,
    values: Tensor,
}

impl Ema {
    /// Creates averages of all parameters, which start at their current values.
    pub fn new(parameters: &FlatParameters, rate: f64) -> Self {
        Self::of_part(parameters, &parameters.whole(), rate)
    }

    /// Creates averages of a part of the parameters.
    pub fn of_part(parameters: &FlatParameters, part: &Part, rate: f64) -> Self {
        Self { rate, values: part.of(parameters.values()).copy() }
    }

    /// Returns the decay rate: the share of the average that is kept in each step.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns the averages, one per element of the part.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Returns the averages for the fused update.
    pub(crate) fn values_mut(&mut self) -> &mut Tensor {
        &mut self.values
    }
}
