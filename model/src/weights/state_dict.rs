//! Selection of the state dict of a model in a file.
//!
//! Training programs save a state dict under a key such as `model` or `state_dict`, and wrappers such as
//! DistributedDataParallel and torch.compile add a component to every name.

use std::collections::BTreeMap;

/// Keys of dictionaries that contain a state dict.
const CONTAINERS: [&str; 3] = ["model", "state_dict", "model_state_dict"];
/// Key of the dictionary with moving averages in official checkpoints.
const AVERAGES: &str = "model_ema";
/// Components of names that wrappers of modules add: DistributedDataParallel and DataParallel, torch.compile,
/// FullyShardedDataParallel, activation checkpointing.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// The part of a file to select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// The weights.
    Weights,
    /// Their moving averages.
    Averages,
}

/// More than one set of tensors has the names of the model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ambiguous {
    /// Descriptions of the two sets.
    pub sets: [String; 2],
}

/// Selects the tensors whose names are those of a model, after removing the components that containers and wrappers add. All
/// selected tensors have the same prefix in the file. If no set is complete, returns the one
/// with the most names of the model, or the largest. Returns `None` if there is no tensor in this section.
pub(super) fn select<S, T>(
    tensors: BTreeMap<String, S>,
    section: Section,
    model: &BTreeMap<String, T>,
) -> Result<Option<BTreeMap<String, S>>, Ambiguous> {
    let mut sets: BTreeMap<String, BTreeMap<String, S>> = BTreeMap::new();
    for (full, tensor) in tensors {
        let (prefix, is_averages) = prefix_of(&full);
        if is_averages != (section == Section::Averages) {
            continue;
        }
        let name = without_wrappers(&full[prefix.len()..]);
        let set = sets.entry(prefix.to_owned()).or_default();
        if set.insert(name.clone(), tensor).is_some() {
            return Err(Ambiguous { sets: [full.clone(), format!("{prefix}{name}")] });
        }
    }
    let known = |set: &BTreeMap<String, S>| set.keys().filter(|name| model.contains_key(*name)).count();
    let best = sets.iter().max_by_key(|(_, set)| (known(set), set.len())).map(|(prefix, _)| prefix.clone());
    let Some(best) = best else { return Ok(None) };
    let other = sets.iter().find(|(prefix, set)| **prefix != best && known(set) > 0);
    match other {
        Some((other, _)) => Err(Ambiguous { sets: [describe(&best), describe(other)] }),
        None => Ok(sets.remove(&best)),
    }
}

/// Returns the leading components of a name that are containers and wrappers, and whether they contain averages.
fn prefix_of(name: &str) -> (&str, bool) {
    let (mut end, mut is_averages) = (0, false);
    while let Some((component, _)) = name[end..].split_once('.') {
        is_averages |= component == AVERAGES;
        if component != AVERAGES && !CONTAINERS.contains(&component) && !WRAPPERS.contains(&component) {
            break;
        }
        end += component.len() + 1;
    }
    (&name[..end], is_averages)
}

fn without_wrappers(name: &str) -> String {
    name.split('.').filter(|component| !WRAPPERS.contains(component)).collect::<Vec<_>>().join(".")
}

fn describe(prefix: &str) -> String {
    if prefix.is_empty() { "at the top".to_owned() } else { format!("under {:?}", prefix.trim_end_matches('.')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> BTreeMap<String, ()> {
        names.iter().map(|name| ((*name).to_owned(), ())).collect()
    }

    /// Returns the selected names for a model with the parameters a.weight and b.0.bias.
    fn selected(names: &[&str], section: Section) -> Result<Option<Vec<String>>, Ambiguous> {
        let model = named(&["a.weight", "b.0.bias"]);
        select(named(names), section, &model).map(|set| set.map(|set| set.into_keys().collect()))
    }

    #[test]
    fn containers_and_wrappers_are_removed() {
        let prefixes = [
            "",
            "model.",
            "state_dict.",
            "model_state_dict.",
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model.module.",
            "state_dict.model._orig_mod.",
            "model_state_dict.module.module.",
            "_fsdp_wrapped_module.",
            "model.model.",
        ];
        for prefix in prefixes {
            let names = [format!("{prefix}a.weight"), format!("{prefix}b.0.bias"), "optimizer.state.0".to_owned()];
            let names: Vec<&str> = names[..if prefix.is_empty() { 2 } else { 3 }].iter().map(String::as_str).collect();
            let found = selected(&names, Section::Weights);
            assert_eq!(found, Ok(Some(vec!["a.weight".to_owned(), "b.0.bias".to_owned()])), "{prefix}");
            let averages: Vec<String> = names.iter().map(|name| format!("model_ema.{name}")).collect();
            let averages: Vec<&str> = averages.iter().map(String::as_str).collect();
            assert_eq!(selected(&averages, Section::Weights), Ok(None), "{prefix}");
            assert!(selected(&averages, Section::Averages).is_ok_and(|found| found.is_some()), "{prefix}");
        }
        // A wrapper of one submodule.
        let names = ["a._orig_mod.weight", "b._checkpoint_wrapped_module.0.bias"];
        assert_eq!(selected(&names, Section::Weights), Ok(Some(vec!["a.weight".to_owned(), "b.0.bias".to_owned()])));
    }

    #[test]
    fn several_sets_are_never_mixed() {
        let twice = ["model.a.weight", "model.b.0.bias", "module.a.weight", "module.b.0.bias"];
        let sets = ["under \"module\"".to_owned(), "under \"model\"".to_owned()];
        assert_eq!(selected(&twice, Section::Weights), Err(Ambiguous { sets }));
        let partly = ["a.weight", "b.0.bias", "model.a.weight"];
        assert!(selected(&partly, Section::Weights).is_err());
        let halves = ["model.a.weight", "module.b.0.bias"];
        assert!(selected(&halves, Section::Weights).is_err());
        let doubled = ["a.weight", "a._orig_mod.weight", "b.0.bias"];
        assert!(selected(&doubled, Section::Weights).is_err());
        // The averages of an official checkpoint are another section.
        let official = ["model.a.weight", "model.b.0.bias", "model_ema.a.weight", "model_ema.b.0.bias"];
        assert!(selected(&official, Section::Weights).is_ok());
    }

    #[test]
    fn the_names_of_another_model_are_returned_for_the_error() {
        let found = selected(&["model.c", "model.d", "epoch"], Section::Weights);
        assert_eq!(found, Ok(Some(vec!["c".to_owned(), "d".to_owned()])));
        assert_eq!(selected(&[], Section::Weights), Ok(None));
    }
}
