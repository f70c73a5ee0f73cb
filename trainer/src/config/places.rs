//! The places in a configuration: paths and URLs, see the crate arinar-place.

use std::path::Path;

use arinar_data::read::synthetic_samples;
use arinar_place::{Place, PlaceError, expand, local_path};

use super::{ConfigError, Resume, TrainConfig};

impl TrainConfig {
    /// Replaces `~` at the beginning of places, and file URLs where only a path can be used. A place that cannot be used is
    /// left as it is, and [`Self::place_problems`] describes it.
    pub(crate) fn resolve_places(&mut self) {
        let local = [Some(&mut self.run.log_dir), self.data.cache_dir.as_mut(), self.checkpoint.spool_dir.as_mut()];
        let resume = match &mut self.checkpoint.resume {
            Resume::From(place) => Some(place),
            Resume::Auto | Resume::None => None,
        };
        let any = [Some(&mut self.run.dir), Some(&mut self.data.url), resume].into_iter().flatten();
        for place in local.into_iter().flatten().chain(any.filter(|place| place.starts_with('~'))) {
            if let Ok(path) = expand(place) {
                *place = path.display().to_string();
            }
        }
    }

    /// Returns an error for each value that is not a usable place.
    pub(super) fn place_problems(&self) -> Vec<ConfigError> {
        let is_stored = synthetic_samples(&self.data.url).is_none();
        let resume = match &self.checkpoint.resume {
            Resume::From(place) => Some(place),
            Resume::Auto | Resume::None => None,
        };
        let local = |place: &String| local_path(Path::new(place)).map(drop);
        let any = |place: &String| Place::parse(place).map(drop);
        let checks: [(&str, Option<Result<(), PlaceError>>); 6] = [
            ("run.dir", Some(any(&self.run.dir))),
            ("run.log_dir", Some(local(&self.run.log_dir))),
            ("data.url", is_stored.then(|| any(&self.data.url))),
            ("data.cache_dir", self.data.cache_dir.as_ref().map(local)),
            ("checkpoint.resume", resume.map(any)),
            ("checkpoint.spool_dir", self.checkpoint.spool_dir.as_ref().map(local)),
        ];
        let problem = |(key, check): (&'static str, Option<Result<(), PlaceError>>)| {
            Some(ConfigError::Value { key, message: check?.err()?.to_string() })
        };
        checks.into_iter().filter_map(problem).collect()
    }
}

/// Returns the absolute path or the URL of a place, for messages.
pub(crate) fn absolute(place: &str) -> String {
    Place::parse(place).map_or_else(|_| place.to_owned(), |place| place.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(overrides: &[&str]) -> TrainConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let text = include_str!("../../../configs/arinar_b.yaml");
        crate::config::parse(text, "arinar_b.yaml", &overrides).unwrap()
    }

    #[test]
    fn every_place_is_checked() {
        type Setter = fn(&mut TrainConfig, String);
        let set: [(&str, Setter); 6] = [
            ("run.dir", |config, place| config.run.dir = place),
            ("run.log_dir", |config, place| config.run.log_dir = place),
            ("data.url", |config, place| config.data.url = place),
            ("data.cache_dir", |config, place| config.data.cache_dir = Some(place)),
            ("checkpoint.resume", |config, place| config.checkpoint.resume = Resume::From(place)),
            ("checkpoint.spool_dir", |config, place| config.checkpoint.spool_dir = Some(place)),
        ];
        for (key, set) in set {
            let is_local = ["run.log_dir", "data.cache_dir", "checkpoint.spool_dir"].contains(&key);
            let problems = |place: &str| {
                let mut config = config(&[]);
                set(&mut config, place.to_owned());
                config.problems().iter().map(ToString::to_string).collect::<Vec<_>>()
            };
            for place in ["s3:/bucket/x", "S3://b", "~nobody/x", "$HOME/x", "hf://x"] {
                let found = problems(place);
                assert!(found.len() == 1 && found[0].starts_with(&format!("{key}: {place:?} ")), "{found:?}");
            }
            let found = problems("");
            assert!(found.len() == 1 && found[0].starts_with(&format!("{key}: ")), "{found:?}");
            assert!(found[0].contains("empty"), "{found:?}");
            for place in ["runs/a", "/runs/a", "./s3:/x", "file:///runs/a", "~/runs"] {
                assert!(problems(place).is_empty(), "{key} {place}");
            }
            for place in ["s3://bucket/x", "gs://bucket", "az://container/x"] {
                let found = problems(place);
                assert_eq!(found.len(), usize::from(is_local), "{found:?}");
                assert!(found.iter().all(|text| text.contains("only a local path")), "{found:?}");
            }
        }
    }

    #[test]
    fn a_home_folder_and_file_urls_are_resolved() {
        let home = std::env::home_dir().unwrap().display().to_string();
        let mut found =
            config(&["run.dir=~/run", "run.log_dir=file:///a%20b", "data.cache_dir=~/cache", "data.url=file:///d"]);
        found.resolve_places();
        assert_eq!((found.run.dir, found.run.log_dir), (format!("{home}/run"), "/a b".to_owned()));
        assert_eq!((found.data.cache_dir, found.data.url), (Some(format!("{home}/cache")), "file:///d".to_owned()));
        let mut found = config(&["run.dir=runs/a", "run.log_dir=logs"]);
        found.resolve_places();
        assert_eq!((found.run.dir, found.run.log_dir), ("runs/a".to_owned(), "logs".to_owned()));
    }
}
