//! The constraint of one generation: the state of the trace so far, and the tokens that may follow.

use std::fmt;
use std::sync::Arc;

use cwm_trace::{Event, Special};
use rustc_hash::FxHashSet;

use crate::grammar::{Grammar, Token, set};
use crate::lines::Lines;
use crate::names::{Names, REST};
use crate::part::{Part, Read};
use crate::trie::Node;

/// The state of a partial trace.
#[derive(Debug)]
pub struct Constraint {
    grammar: Arc<Grammar>,
    lines: Option<Arc<Lines>>,
    at: At,
    /// Position of the current LINE in `lines`. `None` outside a LINE, and in a line that is not in `lines`.
    line: Option<Node>,
    frame: Frame,
}

/// Part of the trace format at the end of the text.
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

/// The current part, and the variables that it can refer to.
#[derive(Debug)]
struct Frame {
    part: Part,
    names: Names,
    /// Variables of the last CALL or LINE frame of each open activation.
    scopes: Vec<FxHashSet<Box<[u8]>>>,
    /// Whether the current frame can refer to the last scope.
    in_line: bool,
}

/// Error for a token that cannot follow in a well-formed trace.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this token cannot follow in a well-formed trace")
    }
}

impl std::error::Error for Refused {}

impl Constraint {
    /// Creates a constraint at the start of a text, where a document or frames without a context can begin. If `lines`
    /// is given, actions can show only these lines.
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

    /// Fills `mask`, of [`Grammar::mask_words`] words, with the tokens that may follow. No token may follow the end
    /// token.
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

    /// Returns whether a token may follow: its bit of `allowed`.
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

    /// Returns whether the current LINE is a proper prefix of source lines but not itself a line. An empty LINE is
    /// valid: it stands for an unknown line, as of instructions without a line.
    fn is_within_line(&self) -> bool {
        match (self.line, &self.lines) {
            (Some(node), Some(lines)) => node != Node::ROOT && !lines.is_end(node),
            _ => false,
        }
    }

    /// Advances past a token. Accepts whatever the parser accepts: tokens that a caller supplies can show a `..`
    /// without a value to refer to, or a line that is not in the source. A rejected token does not change the state.
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

    /// Returns the part that a special token leads to, or `None` if the parser rejects it.
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

    /// Returns whether a token may follow.
    fn takes(&mut self, text: &[u8]) -> bool {
        let mark = self.names.mark();
        let taken = self.read(text, Frame::is_shown).is_some();
        self.names.rewind(mark);
        taken
    }

    /// Reads text. `may_be_unchanged` decides whether the last name may have the value `..`.
    fn read(&mut self, text: &[u8], may_be_unchanged: impl Fn(&Frame) -> bool) -> Option<Part> {
        let mut part = self.part;
        for &byte in text {
            let (next, read) = part.step(byte)?;
            part = next;
            let is_valid = match read {
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
            if !is_valid {
                return None;
            }
        }
        Some(part)
    }

    /// Returns whether the last name has a value that `..` can refer to, or the pair represents omitted variables.
    fn is_shown(&self) -> bool {
        let (Some(scope), Some(name)) = (self.scopes.last(), self.names.last()) else {
            return false;
        };
        self.in_line && (scope.contains(name) || self.names.at_first() && name == REST)
    }

    /// Updates the scopes at the end of a frame, as `cwm_trace::resolve` does.
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
