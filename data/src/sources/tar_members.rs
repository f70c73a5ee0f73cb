//! The members of a tar file.

use std::collections::BTreeMap;

use super::listing::Content;

/// A member of a tar file.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Folder,
    File(Content),
    /// A symbolic link with its target.
    Link(Vec<u8>),
}

/// Members by normalized path.
pub(super) type Nodes = BTreeMap<Vec<u8>, Node>;
