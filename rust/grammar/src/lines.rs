//! The lines that actions can show.

use crate::trie::{Node, Trie};

/// The lines of a source, each with its newline. All constraints of a context share them.
#[derive(Debug)]
pub struct Lines(Trie);

impl Lines {
    /// Creates the set of lines, which must have less than 4 GiB in total. Returns `None` if all lines are empty.
    pub fn new<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Lines> {
        let mut lines = lines.into_iter().filter(|line| !line.is_empty()).peekable();
        lines.peek()?;
        Some(Lines(Trie::new(lines.map(|line| (line.as_bytes(), 0)))))
    }

    pub(crate) fn child(&self, node: Node, byte: u8) -> Option<Node> {
        self.0.child(node, byte)
    }

    pub(crate) fn descend(&self, node: Node, text: &[u8]) -> Option<Node> {
        text.iter().try_fold(node, |node, &byte| self.child(node, byte))
    }

    pub(crate) fn is_end(&self, node: Node) -> bool {
        self.0.is_end(node)
    }
}
