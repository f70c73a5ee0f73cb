//! Symbolic links within a tar file: they are followed as if the tar file had been extracted.

use super::listing::{Content, Listing};
use super::member_path::{as_text, is_below, is_hidden, joined, parent, push};
use super::tar_members::{Node, Nodes};

/// Maximum number of links on the way to a file, as in the Linux kernel.
const MAX_LINKS: usize = 40;

/// Lists the files of a tar file, with links replaced by what they point to.
pub(super) fn expand_links(nodes: &Nodes) -> Listing {
    let mut expansion = Expansion { nodes, listing: Listing::default(), steps: Vec::new() };
    for (path, node) in nodes {
        expansion.add(path.clone(), path, node);
    }
    expansion.listing
}

struct Expansion<'a> {
    nodes: &'a Nodes,
    listing: Listing,
    /// The links to folders that lead to the current file, outermost first: the folder in which the walk to the link
    /// began, and the path of the link.
    steps: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Expansion<'_> {
    /// Adds a member that appears as `shown`. Its own path, `path`, differs if a link to a folder leads to it.
    fn add(&mut self, shown: Vec<u8>, path: &[u8], node: &Node) {
        if is_hidden(&shown) {
            self.listing.hidden.add(&shown);
            return;
        }
        match node {
            Node::Folder => self.add_folder(&shown),
            Node::File(content) => self.add_file(shown, content.clone()),
            Node::Link(target) => self.add_link(shown, path, target),
        }
    }

    fn add_file(&mut self, shown: Vec<u8>, content: Content) {
        self.add_folder(parent(&shown));
        self.listing.add(shown, content);
    }

    /// Remembers the top-level folder of a path to a folder.
    fn add_folder(&mut self, folder: &[u8]) {
        if let Some(first) = folder.split(|&byte| byte == b'/').next().filter(|first| !first.is_empty())
            && !self.listing.folders.contains(first)
        {
            self.listing.folders.insert(first.to_vec());
        }
    }

    fn add_link(&mut self, shown: Vec<u8>, path: &[u8], target: &[u8]) {
        let found = resolve(self.nodes, parent(path), target, MAX_LINKS);
        match found.as_ref().map(|real| (real, self.nodes.get(real))) {
            Some((_, Some(Node::File(content)))) => self.add_file(shown, content.clone()),
            Some((real, Some(Node::Folder) | None)) if is_folder(self.nodes, real) => self.follow(shown, path, real),
            _ => {
                let reason = format!(
                    "is a link to {}, which the tar file does not hold; create it with --dereference (-h)",
                    as_text(target)
                );
                self.add_file(shown, Content::Unreadable(reason));
            }
        }
    }

    /// Adds everything in folder `real` below `shown`, except for folders that contain the link at `path`.
    fn follow(&mut self, shown: Vec<u8>, path: &[u8], real: &[u8]) {
        let began = self.steps.last().map_or_else(Vec::new, |(_, link)| target_of(self.nodes, link));
        self.steps.push((began, path.to_vec()));
        if self.is_on_the_way(real) {
            self.listing.loops.add(&shown);
        } else {
            self.add_folder(&shown);
            for (below, node) in self.nodes.range(joined(real, b"")..).take_while(|(below, _)| is_below(below, real)) {
                let shown = joined(&shown, relative(below, real));
                if folders_between(real, below).any(|folder| self.is_on_the_way(folder)) {
                    self.listing.loops.add(&shown);
                } else {
                    self.add(shown, below, node);
                }
            }
        }
        self.steps.pop();
    }

    /// Whether the walk has come through `folder` to the current link.
    fn is_on_the_way(&self, folder: &[u8]) -> bool {
        let passed =
            |(began, link): &(Vec<u8>, Vec<u8>)| (folder == began || is_below(folder, began)) && is_below(link, folder);
        self.steps.iter().any(passed)
    }
}

/// Returns the part of `path` below `folder`.
fn relative<'a>(path: &'a [u8], folder: &[u8]) -> &'a [u8] {
    if folder.is_empty() { path } else { &path[folder.len() + 1..] }
}

/// Returns the folders below `folder` that contain `path`, outermost first.
fn folders_between<'a>(folder: &[u8], path: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let start = path.len() - relative(path, folder).len();
    (start..path.len()).filter(|&at| path[at] == b'/').map(|at| &path[..at])
}

/// Returns the folder to which the link at `path` leads.
fn target_of(nodes: &Nodes, path: &[u8]) -> Vec<u8> {
    match nodes.get(path) {
        Some(Node::Link(target)) => resolve(nodes, parent(path), target, MAX_LINKS).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Returns the path to which a link in `folder` leads, without links; `None` if it leads out of the archive or follows
/// more than `left` links.
fn resolve(nodes: &Nodes, folder: &[u8], target: &[u8], left: usize) -> Option<Vec<u8>> {
    if target.is_empty() || target.first() == Some(&b'/') {
        return None;
    }
    let mut at = folder.to_vec();
    for component in target.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if at.is_empty() => return None,
            b".." => at.truncate(parent(&at).len()),
            name => {
                push(&mut at, name);
                if let Some(Node::Link(next)) = nodes.get(&at) {
                    at = resolve(nodes, parent(&at), next, left.checked_sub(1)?)?;
                }
            }
        }
    }
    Some(at)
}

fn is_folder(nodes: &Nodes, path: &[u8]) -> bool {
    let has_member = || nodes.range(joined(path, b"")..).next().is_some_and(|(below, _)| is_below(below, path));
    path.is_empty() || matches!(nodes.get(path), Some(Node::Folder)) || has_member()
}
