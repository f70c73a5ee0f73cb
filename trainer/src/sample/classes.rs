//! The choice of classes by `--classes`.

use thiserror::Error;

/// Number of classes to sample without `--classes`.
const DEFAULT_CLASSES: usize = 9;

/// A class that the run does not have.
#[derive(Debug, Error, PartialEq)]
#[error("--classes {given:?}: {reason}")]
pub(crate) struct UnknownClass {
    given: String,
    reason: String,
}

/// A class to sample.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Class {
    pub label: i64,
    pub name: String,
}

/// Returns the requested classes, each given by its number or its name. `names` are the names of all classes of the run.
/// Without a request, returns classes that are evenly spread over all of them.
///
/// # Errors
/// Returns an error if a request is neither a name nor a valid number. It suggests the most similar name.
pub(crate) fn choose_classes(requested: &[String], names: &[String]) -> Result<Vec<Class>, UnknownClass> {
    let class = |index: usize| Class { label: index as i64, name: names[index].clone() };
    if requested.is_empty() {
        let count = DEFAULT_CLASSES.min(names.len());
        return Ok((0..count).map(|number| class(number * names.len() / count)).collect());
    }
    requested.iter().map(|given| index_of(given, names).map(class)).collect()
}

fn index_of(given: &str, names: &[String]) -> Result<usize, UnknownClass> {
    let unknown = |reason: String| UnknownClass { given: given.to_owned(), reason };
    if let Some(index) = names.iter().position(|name| name == given) {
        return Ok(index);
    }
    match given.parse::<usize>() {
        Ok(index) if index < names.len() => Ok(index),
        Ok(_) => Err(unknown(format!("the run has classes 0 to {}", names.len().saturating_sub(1)))),
        Err(_) => {
            let nearest = names.iter().min_by_key(|name| strsim::damerau_levenshtein(name, given));
            Err(unknown(match nearest {
                Some(name) => format!("no such class; did you mean {name:?}?"),
                None => "the run has no classes".to_owned(),
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["animals", "flags", "food"].map(str::to_owned).to_vec()
    }

    fn labels(requested: &[&str]) -> Result<Vec<i64>, UnknownClass> {
        let requested: Vec<String> = requested.iter().map(|&given| given.to_owned()).collect();
        Ok(choose_classes(&requested, &names())?.iter().map(|class| class.label).collect())
    }

    #[test]
    fn numbers_and_names_both_work() {
        assert_eq!(labels(&["2", "animals"]), Ok(vec![2, 0]));
        assert_eq!(labels(&[]), Ok(vec![0, 1, 2]));
        let classes = choose_classes(&["2".to_owned()], &names());
        assert_eq!(classes, Ok(vec![Class { label: 2, name: "food".to_owned() }]));
    }

    #[test]
    fn an_unknown_class_is_named_with_a_suggestion() {
        let message = |given: &str| labels(&[given]).err().map(|error| error.to_string());
        assert_eq!(message("flag").as_deref(), Some("--classes \"flag\": no such class; did you mean \"flags\"?"));
        assert_eq!(message("3").as_deref(), Some("--classes \"3\": the run has classes 0 to 2"));
    }
}
