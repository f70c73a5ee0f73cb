//! What a process has to send of a checkpoint.

use std::{collections::BTreeMap, path::PathBuf};

use super::{FileEntry, manifest::Manifest, shard, step_folder::UPLOADED};

/// Files of one rank, which its marker stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub rank: usize,
    pub world: usize,
    pub files: Vec<FileEntry>,
}

impl Group {
    /// A manifest's files by the rank that wrote them; the state is rank 0's.
    pub fn all(manifest: &Manifest) -> Vec<Self> {
        let world = manifest.files.iter().find_map(|file| Some(shard::rank_of(&file.name)?.1)).unwrap_or(1);
        let mut ranks: BTreeMap<usize, Vec<FileEntry>> = BTreeMap::new();
        for file in &manifest.files {
            let rank = shard::rank_of(&file.name).map_or(0, |(rank, _)| rank);
            ranks.entry(rank).or_default().push(file.clone());
        }
        ranks.into_iter().map(|(rank, files)| Self { rank, world, files }).collect()
    }

    /// Name of the object that says they are all in the store.
    pub fn marker(&self) -> String {
        format!("{UPLOADED}-{:05}-of-{:05}.json", self.rank + 1, self.world)
    }
}

/// One checkpoint and what this process has to do about it.
#[derive(Clone)]
pub(super) struct Parcel {
    pub step: u64,
    /// The folder of its files.
    pub folder: PathBuf,
    /// What this process sends.
    pub groups: Vec<Group>,
    /// On rank 0, what makes the checkpoint valid.
    pub manifest: Option<Manifest>,
    /// A killed run may have sent some of it already.
    pub left_over: bool,
    /// The store may hold an older checkpoint of this step.
    pub replaces: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::FORMAT_VERSION;

    #[test]
    fn files_belong_to_the_rank_that_wrote_them() {
        let names = ["state.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let files = names.map(|name| FileEntry::of(name, name.as_bytes())).to_vec();
        let groups = Group::all(&Manifest { format_version: FORMAT_VERSION, step: 7, files });
        assert_eq!(groups.iter().map(|group| group.files.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(groups[1].marker(), "uploaded-00002-of-00002.json");
    }
}
