//! Compares mixtures and guidance by resampling with the official sampler: the exact selection weights of fixed
//! candidates, and the distribution of the draws.

#![allow(clippy::unwrap_used)]

use arinar_model::gmm::Mixture;
use arinar_model::guidance::{FeatureSource, Resampler, Step, selection_probability};
use arinar_tests::golden::Golden;
use tch::{Kind, Tensor};

/// Number of values drawn per setting with guidance (each from a thousand candidates) and without.
const DRAWS: (i64, i64) = (1600, 40_000);
/// Rows drawn at once, few enough for their candidates to stay in the CPU cache.
const ROWS: i64 = 100;

/// Returns the mixtures of all cases, [cases, K], or the one of the divergent case.
fn mixture(golden: &Golden, prefix: &str, side: &str) -> Mixture {
    let part = |name: &str| {
        let tensor = golden.tensor(&format!("{prefix}in.{name}_{side}"));
        let gaussians = tensor.size()[tensor.dim() - 1];
        tensor.view([-1, gaussians])
    };
    Mixture { log_weight: part("weight").log(), mean: part("mu"), logvar: part("logvar") }
}

#[test]
fn selection_weights_match_the_official_ones() {
    let golden = Golden::read("gmm_sampling");
    let (conditional, null) = (mixture(&golden, "", "c"), mixture(&golden, "", "u"));
    let candidates = golden.tensor("in.candidates");
    let probabilities: Vec<Tensor> = golden
        .reals("/config/cfgs")
        .into_iter()
        .map(|guidance| selection_probability(&candidates, &conditional, &null, guidance))
        .collect();
    let mut comparison = golden.comparison();
    comparison.check("cand.ll_c", &conditional.log_density(&candidates));
    comparison.check("cand.ll_u", &null.log_density(&candidates));
    comparison.check("cand.prob", &Tensor::stack(&probabilities, 1));
    comparison.finish();
}

#[test]
fn the_extreme_candidate_wins_if_the_density_is_improper() {
    let golden = Golden::read("gmm_sampling");
    let (conditional, null) = (mixture(&golden, "divergent.", "c"), mixture(&golden, "divergent.", "u"));
    let candidates = golden.tensor("divergent.in.candidates").unsqueeze(0);
    let guidance = golden.reals("/config/cfgs").into_iter().fold(1.0, f64::max);
    let probability = selection_probability(&candidates, &conditional, &null, guidance).squeeze_dim(0);
    let expected = golden.tensor("divergent.prob");
    // Weights span hundreds of orders of magnitude; compare their mass to float32's precision.
    let mut comparison = golden.comparison();
    comparison.check_within("divergent.prob", &probability, &expected, 1e-6);
    comparison.finish();
}

/// Draws one value per row with the product's sampler.
fn draw(conditional: &Mixture, null: Option<&Mixture>, guidance: f64, temperature: f64) -> Tensor {
    let mut sampler = Resampler::new(temperature);
    let nothing = Tensor::new();
    sampler.begin_step(&Step { index: 0, positions: &nothing, z: &nothing, guidance });
    sampler.choose(0, conditional, null)
}

fn repeated(mixture: &Mixture, case: i64, rows: i64) -> Mixture {
    let repeat = |tensor: &Tensor| tensor.narrow(0, case, 1).repeat([rows, 1]);
    Mixture { log_weight: repeat(&mixture.log_weight), mean: repeat(&mixture.mean), logvar: repeat(&mixture.logvar) }
}

/// Returns the largest distance between the empirical distribution of `draws` and a density on `grid`.
fn kolmogorov_smirnov(draws: &Tensor, grid: &Tensor, density: &Tensor) -> f64 {
    let (sorted, _) = draws.to_kind(Kind::Double).sort(0, false);
    let below = grid.to_kind(Kind::Double).searchsorted(&sorted, false, true, "right", None::<Tensor>);
    let empirical = below.to_kind(Kind::Double) / draws.numel() as f64;
    let trapezoids = Tensor::cumulative_trapezoid_x(&density.to_kind(Kind::Double), &grid.to_kind(Kind::Double), 0);
    let length = grid.size()[0] - 1;
    (empirical.narrow(0, 1, length) - trapezoids).abs().max().double_value(&[])
}

#[test]
fn draws_follow_the_guided_density() {
    let golden = Golden::read("gmm_sampling");
    let (conditional, null) = (mixture(&golden, "", "c"), mixture(&golden, "", "u"));
    let (grid, density) = (golden.tensor("grid"), golden.tensor("density"));
    let settings = golden.value("/values/settings").as_array().unwrap();
    assert!(!settings.is_empty());
    let index = |list: &str, value: f64| golden.reals(list).iter().position(|&entry| entry == value).unwrap() as i64;
    tch::manual_seed(golden.real("/seed") as i64);
    for setting in settings {
        let number = |key: &str| setting[key].as_f64().unwrap();
        let (case, guidance, temperature) = (number("case") as i64, number("cfg"), number("temperature"));
        let guided = guidance != 1.0;
        let rows = if guided { DRAWS.0 } else { DRAWS.1 };
        let (conditional, null) = (repeated(&conditional, case, ROWS), repeated(&null, case, ROWS));
        let draws: Vec<Tensor> =
            (0..rows / ROWS).map(|_| draw(&conditional, guided.then_some(&null), guidance, temperature)).collect();
        let draws = Tensor::cat(&draws, 0);
        let place = (index("/config/cfgs", guidance), index("/config/temperatures", temperature));
        let density = density.get(case).get(place.0).get(place.1);
        let distance = kolmogorov_smirnov(&draws, &grid, &density);
        // The 1% significance level for this number of draws, as the manifest recommends.
        let limit = 1.63 / (rows as f64).sqrt() + number("ks_official_vs_analytic");
        println!("case {case}, guidance {guidance}, temperature {temperature}: {distance:.4} of {limit:.4}");
        assert!(distance < limit, "case {case}, guidance {guidance}, temperature {temperature}: {distance}");
    }
}
