//! Automaton that reads the text of a part of a trace byte by byte.
//!
//! It follows the JSON reader of the strict parser byte for byte. [`Names`](crate::names::Names) handles the text of
//! the names of variables.

use crate::utf8::Utf8;

/// State within a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// No text is allowed.
    Nothing,
    /// CONTEXT or LINE, which can have any text.
    Text(Utf8),
    Locals(Locals),
    Value(Value),
}

/// A JSON object of strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Locals {
    Start,
    /// After `{`.
    First,
    Name(InString),
    BeforeColon,
    AfterColon,
    Value(InString, Dots),
    AfterValue,
    AfterComma,
    End,
}

/// A JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Value {
    Start,
    String(InString),
    End,
}

/// State within a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum InString {
    Plain(Utf8),
    /// After a backslash.
    Escape,
    /// After `\u`, with `left` digits missing.
    Hex {
        left: u8,
        code: u16,
    },
}

/// Number of dots so far if the value consists of dots, up to two, which mean an unchanged value. Else `None`.
pub(crate) type Dots = Option<u8>;

const DOT: u16 = b'.' as u16;
const BEGUN: InString = InString::Plain(Utf8::WHOLE);

/// Effect of a byte in addition to the new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Nothing,
    /// A byte of a name.
    NameByte(u8),
    /// A UTF-16 unit of a name, from an escape.
    NameUnit(u16),
    NameEnd,
    /// The end of the value of a variable, and whether the value is `..`.
    ValueEnd {
        unchanged: bool,
    },
}

enum Character {
    None,
    Byte(u8),
    Unit(u16),
    End,
}

impl Part {
    /// Returns the state after a byte, or `None` if the byte is malformed here.
    #[inline]
    pub(crate) fn step(self, byte: u8) -> Option<(Part, Read)> {
        match self {
            Part::Nothing => None,
            Part::Text(utf8) => Some((Part::Text(utf8.step(byte)?), Read::Nothing)),
            Part::Locals(locals) => locals.step(byte).map(|(next, read)| (Part::Locals(next), read)),
            Part::Value(value) => Some((Part::Value(value.step(byte)?), Read::Nothing)),
        }
    }

    /// Returns whether the text can end here.
    pub(crate) fn may_end(self) -> bool {
        match self {
            Part::Nothing => true,
            Part::Text(utf8) => utf8.is_whole(),
            Part::Locals(locals) => locals == Locals::End,
            Part::Value(value) => value == Value::End,
        }
    }

    /// Returns the representative of all states that allow the same continuations, apart from the text of names.
    pub(crate) fn key(self) -> Part {
        const OTHER: u16 = u16::MAX;
        match self {
            Part::Locals(Locals::Name(InString::Hex { left, .. })) => {
                Part::Locals(Locals::Name(InString::Hex { left, code: OTHER }))
            }
            Part::Locals(Locals::Value(InString::Hex { left, code }, dots)) => {
                let may_be_dot = u32::from(code) == u32::from(DOT) >> (4 * left);
                let state = match dots {
                    Some(0 | 1) if may_be_dot => (InString::Hex { left, code }, dots),
                    _ => (InString::Hex { left, code: OTHER }, None),
                };
                Part::Locals(Locals::Value(state.0, state.1))
            }
            Part::Value(Value::String(InString::Hex { left, .. })) => {
                Part::Value(Value::String(InString::Hex { left, code: OTHER }))
            }
            other => other,
        }
    }
}

impl Locals {
    #[inline]
    fn step(self, byte: u8) -> Option<(Locals, Read)> {
        use Locals::*;
        let next = match (self, byte) {
            (Name(string), _) => {
                let (string, character) = string.step(byte)?;
                return Some(match character {
                    Character::None => (Name(string), Read::Nothing),
                    Character::Byte(byte) => (Name(string), Read::NameByte(byte)),
                    Character::Unit(unit) => (Name(string), Read::NameUnit(unit)),
                    Character::End => (BeforeColon, Read::NameEnd),
                });
            }
            (Value(string, dots), _) => {
                let (string, character) = string.step(byte)?;
                let code = match character {
                    Character::None => return Some((Value(string, dots), Read::Nothing)),
                    Character::Byte(byte) => u16::from(byte),
                    Character::Unit(unit) => unit,
                    Character::End => {
                        let unchanged = dots == Some(2);
                        return Some((AfterValue, Read::ValueEnd { unchanged }));
                    }
                };
                Value(
                    string,
                    dots.filter(|&dots| dots < 2 && code == DOT).map(|dots| dots + 1),
                )
            }
            (Start, b'{') => First,
            (Start, _) => return None,
            (_, b' ' | b'\t' | b'\n' | b'\r') => self,
            (First | AfterComma, b'"') => Name(BEGUN),
            (BeforeColon, b':') => AfterColon,
            (AfterColon, b'"') => Value(BEGUN, Some(0)),
            (AfterValue, b',') => AfterComma,
            (First | AfterValue, b'}') => End,
            _ => return None,
        };
        Some((next, Read::Nothing))
    }
}

impl Value {
    #[inline]
    fn step(self, byte: u8) -> Option<Value> {
        Some(match (self, byte) {
            (Value::String(string), _) => match string.step(byte)? {
                (_, Character::End) => Value::End,
                (string, _) => Value::String(string),
            },
            (_, b' ' | b'\t' | b'\n' | b'\r') => self,
            (Value::Start, b'"') => Value::String(BEGUN),
            _ => return None,
        })
    }
}

impl InString {
    #[inline]
    fn step(self, byte: u8) -> Option<(InString, Character)> {
        Some(match self {
            InString::Plain(Utf8::WHOLE) if byte == b'"' => (self, Character::End),
            InString::Plain(Utf8::WHOLE) if byte == b'\\' => (InString::Escape, Character::None),
            InString::Plain(Utf8::WHOLE) if byte < 0x20 => return None,
            InString::Plain(utf8) => (InString::Plain(utf8.step(byte)?), Character::Byte(byte)),
            InString::Escape if byte == b'u' => (InString::Hex { left: 4, code: 0 }, Character::None),
            InString::Escape => (BEGUN, Character::Byte(unescape(byte)?)),
            InString::Hex { left, code } => {
                let code = code << 4 | char::from(byte).to_digit(16)? as u16;
                match left {
                    1 => (BEGUN, Character::Unit(code)),
                    _ => (InString::Hex { left: left - 1, code }, Character::None),
                }
            }
        })
    }
}

fn unescape(kind: u8) -> Option<u8> {
    Some(match kind {
        b'"' | b'\\' | b'/' => kind,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}
