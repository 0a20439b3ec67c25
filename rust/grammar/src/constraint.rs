//! One generation: what was written, and what may follow.

use std::fmt;
use std::sync::Arc;

use cwm_trace::{Event, Special};
use rustc_hash::FxHashSet;

use crate::grammar::{Grammar, Token, set};
use crate::lines::Lines;
use crate::names::{Names, REST};
use crate::part::{Part, Read};
use crate::trie::Node;

/// A trace as far as it is written.
#[derive(Debug)]
pub struct Constraint {
    grammar: Arc<Grammar>,
    lines: Option<Arc<Lines>>,
    at: At,
    /// Where the current LINE is among `lines`; `None` elsewhere, and in a line that is none of them.
    line: Option<Node>,
    frame: Frame,
}

/// Between which special tokens the end of the text is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Start,
    Begun,
    Context,
    Between,
    State(Event),
    Line(Event),
    Value(Event),
    Ended,
}

/// The current part, and the variables that it may refer to.
#[derive(Debug)]
struct Frame {
    part: Part,
    names: Names,
    /// For each open activation, the variables of its last CALL or LINE frame.
    scopes: Vec<FxHashSet<Box<[u8]>>>,
    /// Whether the current frame may refer to the last of these.
    in_line: bool,
}

/// A token after which nothing is well formed.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no well-formed trace goes on so")
    }
}

impl std::error::Error for Refused {}

impl Constraint {
    /// At the very beginning, where a document may begin, or frames alone. `lines` are those that actions may show.
    pub fn new(grammar: Arc<Grammar>, lines: Option<Arc<Lines>>) -> Constraint {
        Constraint {
            grammar,
            lines,
            at: At::Start,
            line: None,
            frame: Frame {
                part: Part::Nothing,
                names: Names::default(),
                scopes: Vec::new(),
                in_line: false,
            },
        }
    }

    /// Fills `mask`, of [`Grammar::mask_words`], with the tokens that may follow. None may after the end token.
    pub fn allowed(&mut self, mask: &mut [u64]) {
        match (self.line, &self.lines) {
            (Some(node), Some(lines)) => {
                mask.fill(0);
                let step = |node, byte| lines.child(node, byte);
                self.grammar.trie.walk(node, step, |id, _| set(mask, id));
            }
            _ => match self.grammar.choices(self.frame.part) {
                Some(choices) => {
                    mask.copy_from_slice(&choices.always);
                    for &id in &choices.sometimes {
                        if self.frame.takes(self.grammar.text(id)) {
                            set(mask, id);
                        }
                    }
                }
                None => mask.fill(0),
            },
        }
        for special in Special::ALL {
            if self.allows_special(special) {
                set(mask, self.grammar.special(special));
            }
        }
    }

    /// Whether this token may follow: its bit of `allowed`.
    pub fn allows(&mut self, id: u32) -> bool {
        match (self.grammar.token(id), self.line, &self.lines) {
            (Token::Foreign, ..) => false,
            (Token::Special(special), ..) => self.allows_special(special),
            (Token::Text(text), Some(node), Some(lines)) => lines.descend(node, text).is_some(),
            (Token::Text(text), ..) => self.frame.takes(text),
        }
    }

    fn allows_special(&self, special: Special) -> bool {
        !self.is_within_line() && self.after(special).is_some()
    }

    /// Whether what is written of the current LINE begins lines of the source, but is none. Nothing stands for a line
    /// that is not known, as that of instructions that come from no line.
    fn is_within_line(&self) -> bool {
        match (self.line, &self.lines) {
            (Some(node), Some(lines)) => node != Node::ROOT && !lines.is_end(node),
            _ => false,
        }
    }

    /// Goes past a token. Whatever the parser takes is taken: tokens that a caller supplies may show a `..` that refers
    /// to nothing, or a line that is not of the source. After a refused one the state is as before.
    pub fn advance(&mut self, id: u32) -> Result<(), Refused> {
        match self.grammar.token(id) {
            Token::Foreign => Err(Refused),
            Token::Special(special) => {
                let at = self.after(special).ok_or(Refused)?;
                self.enter(at, special);
                Ok(())
            }
            Token::Text(text) => {
                self.frame.advance(text)?;
                if let (Some(node), Some(lines)) = (self.line, &self.lines) {
                    self.line = lines.descend(node, text);
                }
                Ok(())
            }
        }
    }

    /// Where a special token leads; `None` where the parser refuses it.
    fn after(&self, special: Special) -> Option<At> {
        use Special::*;
        if !self.frame.part.may_end() {
            return None;
        }
        match (self.at, special) {
            (At::Start, BeginOfText) => Some(At::Begun),
            (At::Begun, ContextStart) => Some(At::Context),
            (At::Context, FrameSep) => Some(At::Between),
            (At::Start | At::Between, EndOfText) => Some(At::Ended),
            (At::Start | At::Between, _) => {
                let event = Event::ALL.into_iter().find(|event| event.special() == special);
                event.map(At::State)
            }
            (At::State(event), ActionSep) => Some(At::Line(event)),
            (At::Line(event), FrameSep) if event.has_locals() => Some(At::Between),
            (At::Line(event), ArgSep) if !event.has_locals() => Some(At::Value(event)),
            (At::Value(_), FrameSep) => Some(At::Between),
            _ => None,
        }
    }

    fn enter(&mut self, at: At, special: Special) {
        if let (At::Line(event) | At::Value(event), At::Between) = (self.at, at) {
            self.frame.close_frame(event);
        }
        if let At::State(event) = at {
            self.frame.names.clear();
            self.frame.in_line = event == Event::Line;
        }
        self.at = at;
        self.frame.part = Part::after(special);
        self.line = (special == Special::ActionSep && self.lines.is_some()).then_some(Node::ROOT);
    }
}

impl Frame {
    fn advance(&mut self, text: &[u8]) -> Result<(), Refused> {
        let mark = self.names.mark();
        match self.read(text, |_| true) {
            Some(part) => {
                self.part = part;
                Ok(())
            }
            None => {
                self.names.rewind(mark);
                Err(Refused)
            }
        }
    }

    /// Whether a token may follow.
    fn takes(&mut self, text: &[u8]) -> bool {
        let mark = self.names.mark();
        let taken = self.read(text, Frame::is_shown).is_some();
        self.names.rewind(mark);
        taken
    }

    /// Reads on; `may_be_unchanged` decides whether the last name may have the value `..`.
    fn read(&mut self, text: &[u8], may_be_unchanged: impl Fn(&Frame) -> bool) -> Option<Part> {
        let mut part = self.part;
        for &byte in text {
            let (next, read) = part.step(byte)?;
            part = next;
            let goes_on = match read {
                Read::Nothing => true,
                Read::NameByte(byte) => {
                    self.names.push_byte(byte);
                    true
                }
                Read::NameUnit(unit) => {
                    self.names.push_unit(unit);
                    true
                }
                Read::NameEnd => self.names.end_name(),
                Read::ValueEnd { unchanged } => {
                    self.names.end_value(unchanged);
                    !unchanged || may_be_unchanged(self)
                }
            };
            if !goes_on {
                return None;
            }
        }
        Some(part)
    }

    /// Whether the last name has a value that `..` can refer to, or the pair stands for variables that are left out.
    fn is_shown(&self) -> bool {
        let (Some(scope), Some(name)) = (self.scopes.last(), self.names.last()) else {
            return false;
        };
        self.in_line && (scope.contains(name) || self.names.at_first() && name == REST)
    }

    /// Scopes change as `cwm_trace::resolve` has it.
    fn close_frame(&mut self, event: Event) {
        match event {
            Event::Call => self.scopes.push(FxHashSet::default()),
            Event::Line => {}
            Event::Exception => return,
            Event::Return => {
                self.scopes.pop();
                return;
            }
        }
        if let Some(scope) = self.scopes.last_mut() {
            let leaves_out = event == Event::Line && self.names.begin_with_rest() && !scope.contains(REST);
            if !leaves_out {
                scope.clear();
            }
            let shown = self.names.iter().skip(usize::from(leaves_out));
            scope.extend(shown.map(Box::from));
        }
    }
}
