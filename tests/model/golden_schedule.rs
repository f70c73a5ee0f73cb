//! Compares the schedules of masking, guidance and the learning rate with the official ones.

#![allow(clippy::unwrap_used)]

use arinar_model::schedule::{
    GuidanceSchedule, LearningRate, LrSchedule, guidance_at, lr_at, mask_lengths, mask_ratio_quantile, num_masked,
};
use arinar_tests::golden::Golden;

#[test]
fn numbers_of_masked_tokens_match_in_sampling() {
    let golden = Golden::read("schedule");
    let length = golden.size("seq_len");
    for steps in golden.integers("/config/num_iter") {
        let lengths = mask_lengths(length, steps);
        let mut expected: Vec<i64> = Vec::try_from(golden.tensor(&format!("mask_len.iter{steps}"))).unwrap();
        // The official schedule ends with one, but its last step reveals all remaining tokens.
        assert_eq!(expected.pop(), Some(1));
        expected.push(0);
        assert_eq!(lengths, expected, "{steps} steps");
        let before = [length].into_iter().chain(lengths.iter().copied());
        let revealed: Vec<i64> = before.zip(&lengths).map(|(before, after)| before - after).collect();
        let expected: Vec<i64> = Vec::try_from(golden.tensor(&format!("num_pred.iter{steps}"))).unwrap();
        assert_eq!(revealed, expected, "{steps} steps");
    }
}

#[test]
fn guidance_matches_the_official_schedule() {
    let golden = Golden::read("schedule");
    let length = golden.size("seq_len");
    let names = golden.tensor_names("cfg_iter.iter");
    assert_eq!(names.len(), golden.integers("/config/num_iter").len() * golden.reals("/config/cfgs").len());
    for name in names {
        let (steps, scale) = name.trim_start_matches("cfg_iter.iter").split_once(".cfg").unwrap();
        let scale: f64 = scale.parse().unwrap();
        let expected: Vec<f64> = Vec::try_from(golden.tensor(name)).unwrap();
        let lengths = mask_lengths(length, steps.parse().unwrap());
        assert_eq!(lengths.len(), expected.len());
        for (masked, expected) in lengths.into_iter().zip(expected) {
            let linear = guidance_at(GuidanceSchedule::Linear, scale, masked, length);
            // The official code computes in float32.
            assert!((linear - expected).abs() <= 2.0 * f64::from(f32::EPSILON) * expected.abs(), "{name} {masked}");
            assert_eq!(guidance_at(GuidanceSchedule::Constant, scale, masked, length), scale);
        }
    }
}

#[test]
fn mask_ratios_follow_a_truncated_normal_distribution() {
    let golden = Golden::read("schedule");
    let least = golden.real("/config/mask_ratio_min");
    let quantiles = golden.value("/values/mask_ratio_quantiles").as_object().unwrap();
    assert!(!quantiles.is_empty());
    for (level, ratio) in quantiles {
        let error = mask_ratio_quantile(level.parse().unwrap(), least) - ratio.as_f64().unwrap();
        assert!(error.abs() < 1e-12, "{level}: {error}");
    }
    let grid: Vec<f64> = Vec::try_from(golden.tensor("mask_ratio.x")).unwrap();
    let levels: Vec<f64> = Vec::try_from(golden.tensor("mask_ratio.cdf")).unwrap();
    for (ratio, level) in grid.into_iter().zip(levels) {
        // The recorded grid and levels are rounded to float32.
        let error = mask_ratio_quantile(level, least) - ratio.clamp(least, 1.0);
        assert!(error.abs() < 1e-6, "{ratio}: {error}");
    }
}

#[test]
fn numbers_of_masked_tokens_match_in_training() {
    let golden = Golden::read("schedule");
    let (length, least) = (golden.size("mask_seq_len"), golden.real("/config/mask_ratio_min"));
    let probabilities: Vec<f64> = Vec::try_from(golden.tensor("num_masked.prob")).unwrap();
    let mut below = 0.0;
    for (masked, probability) in probabilities.iter().enumerate() {
        // The middle of the interval of uniform numbers that give this count.
        if *probability > 0.0 {
            let ratio = mask_ratio_quantile(below + probability / 2.0, least);
            assert_eq!(num_masked(length, ratio), masked as i64);
        }
        below += probability;
    }
    assert!((below - 1.0).abs() < 1e-5);
    assert_eq!(
        num_masked(length, mask_ratio_quantile(0.0, least)),
        golden.value("/values/min_num_masked").as_i64().unwrap()
    );
}

#[test]
fn the_mean_mask_ratio_matches_the_official_one() {
    let golden = Golden::read("schedule");
    let least = golden.real("/config/mask_ratio_min");
    let draws = 20_000;
    let ratios: Vec<f64> =
        (0..draws).map(|draw| mask_ratio_quantile((f64::from(draw) + 0.5) / f64::from(draws), least)).collect();
    let mean = ratios.iter().sum::<f64>() / f64::from(draws);
    let variance = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / f64::from(draws);
    assert!((mean - golden.real("/values/mask_ratio_mean")).abs() < 1e-5, "{mean}");
    assert!((variance - golden.real("/values/mask_ratio_var")).abs() < 1e-5, "{variance}");
}

#[test]
fn learning_rates_match_the_official_ones() {
    let golden = Golden::read("schedule");
    for (name, schedule) in [("constant", LrSchedule::Constant), ("cosine", LrSchedule::Cosine)] {
        let real = |key: &str| golden.real(&format!("/values/lr.{name}/{key}"));
        let rate = LearningRate {
            schedule,
            peak: real("lr"),
            floor: real("min_lr"),
            warmup_epochs: real("warmup_epochs"),
            epochs: real("epochs"),
        };
        let epochs = golden.reals(&format!("/values/lr.{name}/at"));
        let expected = golden.reals(&format!("/values/lr.{name}/value"));
        assert_eq!(epochs.len(), expected.len());
        for (epoch, expected) in epochs.into_iter().zip(expected) {
            let error = lr_at(&rate, epoch) - expected;
            assert!(error.abs() <= 1e-15 * rate.peak.max(1.0), "{name} at {epoch}: {error}");
        }
    }
}
