//! Compares whole sampling runs with the official code, teacher-forced along its recorded trajectories.

#![allow(clippy::unwrap_used)]

use arinar_model::gmm::Mixture;
use arinar_model::guidance::{FeatureSource, Step};
use arinar_model::sampling::{NULL_CLASS, SampleOptions};
use arinar_model::schedule::GuidanceSchedule;
use arinar_model::{Arinar, arinar::patchify};
use arinar_tests::golden::{Comparison, Golden};
use tch::{Device, Kind, Tensor, nn};

/// Replays the recorded features of one run and compares all inputs that it receives.
struct Recorded<'a> {
    golden: &'a Golden,
    run: &'a str,
    comparison: Comparison<'a>,
    guidance: Vec<f64>,
    /// Indices of the recorded rows in the order of this step, [N]. Recorded rows are in ascending order of positions
    /// within a picture.
    rows: Tensor,
    /// Recorded features in the order of this step, [N, C]; `None` once the recording has ended.
    features: Option<Tensor>,
    tokens: i64,
    seen: Vec<Mixture>,
}

impl<'a> Recorded<'a> {
    fn new(golden: &'a Golden, run: &'a str) -> Self {
        Self {
            golden,
            run,
            comparison: golden.comparison(),
            guidance: Vec::new(),
            rows: Tensor::new(),
            features: None,
            tokens: 0,
            seen: Vec::new(),
        }
    }

    fn name(&self, tensor: &str) -> String {
        format!("{}_it{:02}.{tensor}", self.run, self.guidance.len() - 1)
    }

    /// Returns rows of this step (one or two halves) in the recorded order.
    fn recorded_order(&self, rows: &Tensor) -> Tensor {
        let back = self.rows.argsort(0, false);
        let halves = rows.size()[0] / self.tokens;
        let index: Vec<Tensor> = (0..halves).map(|half| &back + half * self.tokens).collect();
        rows.index_select(0, &Tensor::cat(&index, 0))
    }

    fn check_mixtures(&mut self) {
        self.check_part("weight", |mixture| mixture.log_weight.exp());
        self.check_part("mu", |mixture| mixture.mean.shallow_clone());
        self.check_part("logvar", |mixture| mixture.logvar.shallow_clone());
    }

    fn check_part(&mut self, name: &str, part: fn(&Mixture) -> Tensor) {
        let stacked = Tensor::stack(&self.seen.iter().map(part).collect::<Vec<_>>(), 1);
        self.comparison.check(&self.name(name), &self.recorded_order(&stacked));
    }
}

impl FeatureSource for Recorded<'_> {
    fn begin_step(&mut self, step: &Step<'_>) {
        self.guidance.push(step.guidance);
        self.tokens = step.positions.numel() as i64;
        self.seen.clear();
        let (pictures, revealed) = step.positions.size2().unwrap();
        let rank = step.positions.argsort(1, false).argsort(1, false);
        let first = Tensor::arange(pictures, (Kind::Int64, Device::Cpu)).unsqueeze(1) * revealed;
        self.rows = (rank + first).flatten(0, 1);
        if self.golden.tensor_names(&self.name("")).is_empty() {
            self.features = None;
            return;
        }
        let predicted = self.golden.tensor(&self.name("mask_to_pred"));
        let ours = predicted.zeros_like().scatter_value(1, step.positions, 1);
        assert_eq!(ours, predicted, "positions of step {}", step.index);
        self.comparison.check(&self.name("z"), &self.recorded_order(step.z));
        self.features = Some(self.golden.tensor(&self.name("sampled")).index_select(0, &self.rows));
    }

    fn choose(&mut self, feature: i64, conditional: &Mixture, null: Option<&Mixture>) -> Tensor {
        let Some(features) = self.features.as_ref().map(Tensor::shallow_clone) else {
            return Tensor::zeros([self.tokens], (Kind::Float, Device::Cpu));
        };
        let both = |part: fn(&Mixture) -> &Tensor| match null {
            Some(null) => Tensor::cat(&[part(conditional), part(null)], 0),
            None => part(conditional).shallow_clone(),
        };
        let mixture =
            Mixture { log_weight: both(|m| &m.log_weight), mean: both(|m| &m.mean), logvar: both(|m| &m.logvar) };
        self.seen.push(mixture);
        if feature + 1 == features.size()[1] {
            self.check_mixtures();
        }
        features.select(1, feature)
    }
}

fn options(golden: &Golden, run: &str) -> SampleOptions {
    let real = |key: &str| golden.real(&format!("/config/run_{run}/{key}"));
    // Run c has no guidance, hence no schedule.
    let schedule = match golden.value(&format!("/config/run_{run}")).get("cfg_schedule").and_then(|name| name.as_str())
    {
        Some("linear") | None => GuidanceSchedule::Linear,
        Some("constant") => GuidanceSchedule::Constant,
        Some(other) => panic!("unknown guidance schedule {other}"),
    };
    SampleOptions {
        steps: real("num_iter") as i64,
        guidance_scale: real("cfg"),
        guidance_schedule: schedule,
        temperature: real("temperature"),
        seed: 0,
    }
}

fn labels(golden: &Golden, run: &str) -> Vec<i64> {
    let labels: Vec<i64> = Vec::try_from(golden.tensor("in.labels")).unwrap();
    if golden.value(&format!("/config/run_{run}/labels")).is_null() { vec![NULL_CLASS; labels.len()] } else { labels }
}

/// Runs the product's sampling loop along the recorded run.
fn replay(run: &str) {
    let golden = Golden::read("full_sample");
    let config = golden.model_config();
    let store = nn::VarStore::new(Device::Cpu);
    let model = Arinar::new(&store.root(), &config);
    golden.fill(&store);
    let options = options(&golden, run);
    let labels = labels(&golden, run);
    options.validate(&labels, &config).unwrap();
    let mut source = Recorded::new(&golden, run);
    let mut observed = Vec::new();
    let latents =
        model.sample_along(&labels, &golden.tensor("in.orders"), &options, &mut source, &mut |step, steps| {
            observed.push((step, steps));
        });
    let steps = options.steps as usize;
    assert_eq!(observed, (1..=steps).map(|step| (step, steps)).collect::<Vec<_>>());
    check_guidance(&golden, run, &source.guidance);
    if golden.tensor_names(&format!("{run}_out.")).is_empty() {
        // Only the first iterations were recorded: compare the tokens that they revealed.
        check_revealed(&golden, run, &patchify(&latents));
    } else {
        assert_eq!(latents, golden.tensor(&format!("{run}_out.latents")));
    }
    source.comparison.finish();
}

fn check_guidance(golden: &Golden, run: &str, guidance: &[f64]) {
    let recorded = golden.value(&format!("/values/{run}")).as_array().unwrap();
    assert!(!recorded.is_empty());
    for (ours, recorded) in guidance.iter().zip(recorded) {
        assert!((ours - recorded["cfg_iter"].as_f64().unwrap()).abs() < 1e-6);
    }
    assert!(guidance.len() >= recorded.len());
}

fn check_revealed(golden: &Golden, run: &str, tokens: &Tensor) {
    let predicted = golden.tensor(&format!("{run}_it00.mask_to_pred")).nonzero();
    let rows = tokens.index(&[Some(predicted.select(1, 0)), Some(predicted.select(1, 1))]);
    assert_eq!(rows, golden.tensor(&format!("{run}_it00.sampled")));
}

#[test]
fn sampling_without_guidance() {
    replay("a");
}

#[test]
fn sampling_with_guidance() {
    replay("b");
}

#[test]
fn sampling_without_labels() {
    replay("c");
}
