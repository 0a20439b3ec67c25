//! Prefix tree of byte strings.

/// Prefix tree of numbered byte strings, in preorder: a node is followed by its subtree, with children in ascending
/// order.
#[derive(Debug, Default)]
pub(crate) struct Trie {
    /// The last byte of each node's string.
    bytes: Vec<u8>,
    /// Number of bytes before it.
    depths: Vec<u32>,
    /// End of the subtree of each node.
    ends: Vec<u32>,
    /// Number of the string that ends at each node, or `NONE`.
    values: Vec<u32>,
}

const NONE: u32 = u32::MAX;

/// A node, or the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(u32);

impl Node {
    pub(crate) const ROOT: Node = Node(u32::MAX);
}

impl Trie {
    /// Creates a tree of non-empty strings with less than 4 GiB in total. Of equal strings, one keeps its number.
    pub(crate) fn new<'a>(strings: impl IntoIterator<Item = (&'a [u8], u32)>) -> Trie {
        let mut strings: Vec<_> = strings.into_iter().collect();
        strings.sort_unstable();
        let mut trie = Trie::default();
        let mut path: Vec<u32> = Vec::new(); // the nodes of the last string
        let mut last: &[u8] = b"";
        for (string, value) in strings {
            let common = string.iter().zip(last).take_while(|(a, b)| a == b).count();
            trie.close(&mut path, common);
            for (depth, &byte) in string.iter().enumerate().skip(common) {
                path.push(trie.bytes.len() as u32);
                trie.bytes.push(byte);
                trie.depths.push(depth as u32);
                trie.ends.push(0);
                trie.values.push(NONE);
            }
            if let Some(&node) = path.last() {
                trie.values[node as usize] = value;
            }
            last = string;
        }
        trie.close(&mut path, 0);
        trie
    }

    fn close(&mut self, path: &mut Vec<u32>, depth: usize) {
        for node in path.drain(depth..) {
            self.ends[node as usize] = self.bytes.len() as u32;
        }
    }

    /// Calls `found` with the number and the final state of each string whose bytes `step` accepts, starting at
    /// `start`.
    pub(crate) fn walk<S: Copy>(
        &self,
        start: S,
        mut step: impl FnMut(S, u8) -> Option<S>,
        mut found: impl FnMut(u32, S),
    ) {
        let mut states = vec![start];
        let mut node = 0;
        while let Some(&byte) = self.bytes.get(node) {
            let depth = self.depths[node] as usize;
            states.truncate(depth + 1);
            match step(states[depth], byte) {
                Some(state) => {
                    if self.values[node] != NONE {
                        found(self.values[node], state);
                    }
                    states.push(state);
                    node += 1;
                }
                None => node = self.ends[node] as usize,
            }
        }
    }

    /// Returns the child of a node for a byte.
    pub(crate) fn child(&self, node: Node, byte: u8) -> Option<Node> {
        let (mut child, end) = match node {
            Node::ROOT => (0, self.bytes.len() as u32),
            Node(at) => (at + 1, self.ends[at as usize]),
        };
        while child < end && self.bytes[child as usize] < byte {
            child = self.ends[child as usize];
        }
        (child < end && self.bytes[child as usize] == byte).then_some(Node(child))
    }

    /// Returns whether a string ends at this node.
    pub(crate) fn is_end(&self, node: Node) -> bool {
        node != Node::ROOT && self.values[node.0 as usize] != NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn walking_and_stepping_find_what_is_in_it(strings in prop::collection::vec("[abc]{1,5}", 0..30), text in "[abcd]{0,7}") {
            let numbered: BTreeMap<&[u8], u32> = strings.iter().map(|s| s.as_bytes()).zip(0..).collect();
            let trie = Trie::new(numbered.iter().map(|(&s, &n)| (s, n)));
            let mut found = Vec::new();
            // The state is the number of bytes of `text` read.
            let step = |at: usize, byte| (text.as_bytes().get(at) == Some(&byte)).then_some(at + 1);
            trie.walk(0, step, |value, length| found.push((value, length)));
            let begins = numbered.iter().filter(|(s, _)| text.as_bytes().starts_with(s));
            prop_assert_eq!(found, begins.map(|(s, &n)| (n, s.len())).collect::<Vec<_>>());

            let node = text.bytes().try_fold(Node::ROOT, |node, byte| trie.child(node, byte));
            prop_assert_eq!(node.is_some(), text.is_empty() || strings.iter().any(|s| s.starts_with(&text)));
            prop_assert_eq!(node.is_some_and(|node| trie.is_end(node)), strings.contains(&text));
        }
    }
}
