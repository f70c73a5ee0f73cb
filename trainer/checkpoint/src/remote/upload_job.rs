//! The part of a checkpoint that a process uploads.

use std::{collections::BTreeMap, path::PathBuf};

use crate::format::{
    manifest::{FileEntry, Manifest},
    step_folder::UPLOADED,
    tensor_files::rank_of,
};

/// The files of a checkpoint that one rank has written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RankFiles {
    pub rank: usize,
    pub world_size: usize,
    pub files: Vec<FileEntry>,
}

impl RankFiles {
    /// Groups the files of a manifest by the rank that wrote them. The state belongs to rank 0.
    pub(crate) fn all(manifest: &Manifest) -> Vec<Self> {
        let world_size = manifest.files.iter().find_map(|file| Some(rank_of(&file.name)?.1)).unwrap_or(1);
        let mut ranks: BTreeMap<usize, Vec<FileEntry>> = BTreeMap::new();
        for file in &manifest.files {
            let rank = rank_of(&file.name).map_or(0, |(rank, _)| rank);
            ranks.entry(rank).or_default().push(file.clone());
        }
        ranks.into_iter().map(|(rank, files)| Self { rank, world_size, files }).collect()
    }

    /// Returns the name of the object that is stored once all these files are uploaded.
    pub(crate) fn marker(&self) -> String {
        format!("{UPLOADED}-{:05}-of-{:05}.json", self.rank + 1, self.world_size)
    }
}

/// A checkpoint to upload, and the part of it that this process uploads.
#[derive(Clone)]
pub(crate) struct UploadJob {
    pub step: u64,
    /// Local folder of the files.
    pub folder: PathBuf,
    /// The files that this process uploads.
    pub files: Vec<RankFiles>,
    /// On rank 0, the manifest that makes the checkpoint valid.
    pub manifest: Option<Manifest>,
    /// The checkpoint was saved by an earlier start of the run, which may already have uploaded some files.
    pub resumed: bool,
    /// The store may hold an older checkpoint of this step.
    pub replaces: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::FORMAT_VERSION;

    #[test]
    fn files_belong_to_the_rank_that_wrote_them() {
        let names = ["state.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let files = names.map(|name| FileEntry::of(name, name.as_bytes())).to_vec();
        let ranks = RankFiles::all(&Manifest { format_version: FORMAT_VERSION, step: 7, files });
        assert_eq!(ranks.iter().map(|rank| rank.files.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(ranks[1].marker(), "uploaded-00002-of-00002.json");
    }
}
