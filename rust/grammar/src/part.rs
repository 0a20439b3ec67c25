//! The text of a part of a trace, read a byte at a time: states and what leads from one to the next.
//!
//! They follow the strict parser's reader of JSON byte for byte. What they leave to [`Names`](crate::names::Names) is
//! the text of variables' names.

use crate::utf8::Utf8;

/// How far the text of a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Where no text may stand.
    Nothing,
    /// CONTEXT or LINE: any text.
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

/// Within a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum InString {
    Plain(Utf8),
    /// After a backslash.
    Escape,
    /// After `\u`, with so many digits to come.
    Hex {
        left: u8,
        code: u16,
    },
}

/// How many dots a value is so far, up to the two that mean an unchanged one; `None` where it is anything else.
pub(crate) type Dots = Option<u8>;

const DOT: u16 = b'.' as u16;
const BEGUN: InString = InString::Plain(Utf8::WHOLE);

/// What a byte means beyond the state that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Nothing,
    /// A byte of a name's text.
    NameByte(u8),
    /// A UTF-16 unit of a name's text, from an escape.
    NameUnit(u16),
    NameEnd,
    /// The end of a variable's value: whether it is `..`.
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
    /// The state after one more byte; `None` where nothing well formed begins so.
    #[inline]
    pub(crate) fn step(self, byte: u8) -> Option<(Part, Read)> {
        match self {
            Part::Nothing => None,
            Part::Text(utf8) => Some((Part::Text(utf8.step(byte)?), Read::Nothing)),
            Part::Locals(locals) => locals.step(byte).map(|(next, read)| (Part::Locals(next), read)),
            Part::Value(value) => Some((Part::Value(value.step(byte)?), Read::Nothing)),
        }
    }

    /// Whether the text may end here.
    pub(crate) fn may_end(self) -> bool {
        match self {
            Part::Nothing => true,
            Part::Text(utf8) => utf8.is_whole(),
            Part::Locals(locals) => locals == Locals::End,
            Part::Value(value) => value == Value::End,
        }
    }

    /// One for all states that agree on what may follow, names' texts aside.
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
