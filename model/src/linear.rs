//! Linear layers that compute their product in a given precision.
//!
//! The parameters are float32. The casts are part of the autograd graph, so gradients are float32, too.

use tch::{Kind, Tensor, nn};

use crate::precision::Precision;

/// A linear layer: `input * weight^T + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    /// Creates a layer with the parameters of `layer` that computes in float32.
    pub(crate) fn new(layer: nn::Linear) -> Self {
        Self { weight: layer.ws, bias: layer.bs, precision: Precision::Fp32 }
    }

    /// Creates a layer whose bias is passed to each call of [`Self::forward_with`].
    pub(crate) fn without_bias(weight: Tensor) -> Self {
        Self { weight, bias: None, precision: Precision::Fp32 }
    }

    /// Returns the weight, [outputs, inputs].
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Sets the precision of subsequent products.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Returns the kind of the output.
    pub(crate) fn output_kind(&self) -> Kind {
        self.precision.kind(self.weight.kind())
    }

    /// Replaces the parameters by copies detached from the graph and cast to the precision of the product, so that
    /// later calls do not cast them again.
    pub(crate) fn freeze(&mut self) {
        self.weight = self.precision.cast(&self.weight.detach());
        self.bias = self.bias.as_ref().map(|bias| self.precision.cast(&bias.detach()));
    }

    /// Applies the layer; the output has the kind of the precision.
    ///
    /// # Shapes
    /// [..., inputs] to [..., outputs].
    pub(crate) fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with(input, self.bias.as_ref())
    }

    /// Applies the layer with the given bias instead of its own.
    pub(crate) fn forward_with(&self, input: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self.precision {
            Precision::Fp32 => input.linear(&self.weight, bias),
            precision => {
                let bias = bias.map(|bias| precision.cast(bias));
                precision.cast(input).linear(&precision.cast(&self.weight), bias)
            }
        }
    }
}
