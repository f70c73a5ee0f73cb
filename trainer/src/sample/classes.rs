//! From what the user types after `--classes` to labels.

use thiserror::Error;

/// A class that the run does not know.
#[derive(Debug, Error, PartialEq)]
#[error("--classes {given:?}: {reason}")]
pub struct UnknownClass {
    given: String,
    reason: String,
}

/// Without `--classes`, this many classes spread evenly over all of them.
const DEFAULT_ROWS: usize = 9;

/// Labels of the classes asked for, by number or by name; `names` are those of the dataset.
///
/// # Errors
/// A class that is neither a number below the number of classes nor a name; the nearest name is suggested.
pub fn choose(asked: &[String], names: &[String]) -> Result<Vec<i64>, UnknownClass> {
    if asked.is_empty() {
        let rows = DEFAULT_ROWS.min(names.len());
        return Ok((0..rows).map(|row| (row * names.len() / rows) as i64).collect());
    }
    asked.iter().map(|given| label(given, names)).collect()
}

fn label(given: &str, names: &[String]) -> Result<i64, UnknownClass> {
    let unknown = |reason: String| UnknownClass { given: given.to_owned(), reason };
    if let Some(index) = names.iter().position(|name| name == given) {
        return Ok(index as i64);
    }
    match given.parse::<usize>() {
        Ok(index) if index < names.len() => Ok(index as i64),
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

    #[test]
    fn numbers_and_names_both_work() {
        let asked = ["2".to_owned(), "animals".to_owned()];
        assert_eq!(choose(&asked, &names()), Ok(vec![2, 0]));
        assert_eq!(choose(&[], &names()), Ok(vec![0, 1, 2]));
    }

    #[test]
    fn what_is_unknown_is_named_with_the_cure() {
        let message = |given: &str| choose(&[given.to_owned()], &names()).err().map(|error| error.to_string());
        assert_eq!(message("flag").as_deref(), Some("--classes \"flag\": no such class; did you mean \"flags\"?"));
        assert_eq!(message("3").as_deref(), Some("--classes \"3\": the run has classes 0 to 2"));
    }
}
