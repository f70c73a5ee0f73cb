//! Linear layers that multiply in a given precision.
//!
//! Their parameters are float32. The casts are part of the graph, so gradients arrive in float32, too.

use tch::{Kind, Tensor, nn};

use crate::precision::Precision;

/// `input * weight^T + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    /// A layer with these parameters that multiplies in float32.
    pub(crate) fn new(layer: nn::Linear) -> Self {
        Self { weight: layer.ws, bias: layer.bs, precision: Precision::Fp32 }
    }

    /// A layer whose bias comes with every call.
    pub(crate) fn without_bias(weight: Tensor) -> Self {
        Self { weight, bias: None, precision: Precision::Fp32 }
    }

    /// The parameter, [outputs, inputs].
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Multiplies in `precision` from now on.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// The kind of the output.
    pub(crate) fn output_kind(&self) -> Kind {
        self.precision.kind(self.weight.kind())
    }

    /// Lets go of the parameters and keeps what the product needs: later calls need not cast again.
    pub(crate) fn freeze(&mut self) {
        self.weight = self.precision.cast(&self.weight.detach());
        self.bias = self.bias.as_ref().map(|bias| self.precision.cast(&bias.detach()));
    }

    /// The product, of the precision's kind.
    ///
    /// # Shapes
    /// [..., inputs] to [..., outputs].
    pub(crate) fn forward(&self, input: &Tensor) -> Tensor {
        self.forward_with(input, self.bias.as_ref())
    }

    /// [`Self::forward`] with a bias from elsewhere.
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
