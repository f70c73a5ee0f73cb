//! The choice of the number of ranks.

use std::str::FromStr;

use crate::stop::Stop;

/// Maximum number of ranks.
const MAX_RANKS: usize = 1 << 16;

/// Value of `--nproc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RankCount {
    /// The largest usable number.
    Auto,
    /// Exactly this many.
    Exactly(usize),
}

impl FromStr for RankCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(count) if (1..=MAX_RANKS).contains(&count) => Ok(Self::Exactly(count)),
            _ => Err("expected a number from 1 to 65536, or auto".to_owned()),
        }
    }
}

impl RankCount {
    /// Returns the number of ranks to start on `slots` slots. The result divides `global_batch`.
    ///
    /// # Errors
    /// An explicit count does not divide the global batch; the error names the nearest counts that do.
    pub(crate) fn choose(self, slots: usize, global_batch: usize) -> Result<usize, Stop> {
        let divides = |ranks: &usize| global_batch.is_multiple_of(*ranks);
        match self {
            Self::Auto => Ok((1..=slots).rev().find(divides).unwrap_or(1)),
            Self::Exactly(ranks) if divides(&ranks) => Ok(ranks),
            Self::Exactly(ranks) => {
                let below = (1..ranks).rev().find(divides);
                let above = (ranks + 1..=global_batch.min(MAX_RANKS)).find(divides);
                let near: Vec<String> = below.into_iter().chain(above).map(|ranks| ranks.to_string()).collect();
                Err(Stop::configuration(format!(
                    "batch.global {global_batch} is not divisible by --nproc {ranks}; use {}",
                    near.join(" or ")
                )))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_the_largest_count_that_divides_the_batch() {
        for (slots, batch, ranks) in [(4, 256, 4), (3, 256, 2), (7, 30, 6), (1, 7, 1), (0, 8, 1), (8, 7, 7)] {
            assert_eq!(RankCount::Auto.choose(slots, batch), Ok(ranks));
        }
        assert_eq!(RankCount::Exactly(8).choose(1, 16), Ok(8));
    }

    #[test]
    fn an_error_names_the_nearest_divisors() {
        let error = RankCount::Exactly(3).choose(4, 32).unwrap_err();
        assert_eq!(error, Stop::configuration("batch.global 32 is not divisible by --nproc 3; use 2 or 4"));
        let error = RankCount::Exactly(64).choose(4, 32).unwrap_err();
        assert_eq!(error.line, "batch.global 32 is not divisible by --nproc 64; use 32");
        // The next divisor of a prime is out of range.
        let error = RankCount::Exactly(2).choose(4, (1 << 61) - 1).unwrap_err();
        assert!(error.line.ends_with("--nproc 2; use 1"), "{error}");
    }
}
