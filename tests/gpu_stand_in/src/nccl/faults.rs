//! Faults injected by `ARINAR_STAND_IN_FAULTS`: sentences separated by semicolons.
//!
//! ```text
//! rank 1 call 5 error        the communicator gets the asynchronous error ncclSystemError; the collective never ends
//! rank 1 call 5 refuse       the call returns ncclUnhandledCudaError and does nothing
//! rank 1 call 5 hang         the collective never ends, without an error
//! rank 1 call 5 die          the process is killed when its stream reaches the collective
//! rank 1 call 5 slow 250     the collective starts 250 ms late
//! rank 1 call 5 garbage      one bit of the first element of the result is flipped
//! rank 1 init error          initialization of the communicator fails with ncclSystemError
//! rank 1 init hang           initialization of the communicator never ends
//! ```
//!
//! Calls are numbered from 1 for each rank since its process started, over all communicators, including refused calls.

use std::{fs, io::ErrorKind, path::PathBuf, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Error,
    Refuse,
    Hang,
    Die,
    Slow(Duration),
    Garbage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Init,
    Call(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Planned {
    text: String,
    rank: usize,
    place: Place,
    fault: Fault,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    planned: Vec<Planned>,
    once: Option<PathBuf>,
}

impl Faults {
    /// Parses a plan. `once` is the folder that records faults that must not occur again.
    ///
    /// # Errors
    /// Returns a message if a sentence is invalid.
    pub(crate) fn parse(text: &str, once: Option<PathBuf>) -> Result<Self, String> {
        let sentences = text.split(';').map(str::trim).filter(|sentence| !sentence.is_empty());
        let planned = sentences.map(|sentence| {
            parse_one(sentence).ok_or_else(|| format!("ARINAR_STAND_IN_FAULTS: {sentence:?} is not a fault"))
        });
        Ok(Self { planned: planned.collect::<Result<_, _>>()?, once })
    }

    /// Returns the fault planned for this place, if any, and records that it has occurred.
    pub(crate) fn at(&self, rank: usize, place: Place) -> Option<Fault> {
        let planned = self.planned.iter().find(|planned| (planned.rank, planned.place) == (rank, place))?;
        if let Some(folder) = &self.once {
            let record = fs::File::create_new(folder.join(planned.text.replace(' ', "-")));
            if record.is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
                return None;
            }
        }
        Some(planned.fault)
    }
}

fn parse_one(sentence: &str) -> Option<Planned> {
    let words: Vec<&str> = sentence.split_whitespace().collect();
    let (rank, place, fault) = match words[..] {
        ["rank", rank, "init", ref fault @ ..] => (rank, Place::Init, fault),
        ["rank", rank, "call", call, ref fault @ ..] => (rank, Place::Call(call.parse().ok()?), fault),
        _ => return None,
    };
    let fault = match (place, fault) {
        (_, ["error"]) => Fault::Error,
        (_, ["hang"]) => Fault::Hang,
        (Place::Init, _) => return None,
        (_, ["refuse"]) => Fault::Refuse,
        (_, ["die"]) => Fault::Die,
        (_, ["garbage"]) => Fault::Garbage,
        (_, ["slow", milliseconds]) => Fault::Slow(Duration::from_millis(milliseconds.parse().ok()?)),
        _ => return None,
    };
    Some(Planned { text: words.join(" "), rank: rank.parse().ok()?, place, fault })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_parsed() {
        let faults = Faults::parse(" rank 1 call 5 slow 250; rank 0 init hang;", None).unwrap();
        assert_eq!(faults.at(1, Place::Call(5)), Some(Fault::Slow(Duration::from_millis(250))));
        assert_eq!(faults.at(0, Place::Init), Some(Fault::Hang));
        assert_eq!(faults.at(0, Place::Call(5)), None);
        for bad in ["rank 1 call 5", "rank 1 init die", "rank 1 call x hang", "call 5 hang", "rank 1 call 5 slow"] {
            assert!(Faults::parse(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn with_a_folder_each_fault_occurs_once() {
        let folder = tempfile::tempdir().unwrap();
        let faults = Faults::parse("rank 0 call 1 die", Some(folder.path().to_path_buf())).unwrap();
        assert_eq!(faults.at(0, Place::Call(1)), Some(Fault::Die));
        assert_eq!(faults.at(0, Place::Call(1)), None);
    }
}
