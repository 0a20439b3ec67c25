//! JSON of frames: writes strings like Python's `json.dumps`, and reads strings and objects of strings like
//! `json.loads`.

use std::io::{self, Write};

/// Returns a word of eight copies of a byte.
const fn splat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Returns a word whose lowest set bit is the high bit of the first byte less than `bound`, which is at most 0x80.
///
/// The high bits of bytes above the first match may be set even if they do not match.
const fn less(word: u64, bound: u8) -> u64 {
    word.wrapping_sub(splat(bound)) & !word & splat(0x80)
}

/// Returns the number of bytes before the first one that a JSON string must escape: a control character, `"`, `\`, or,
/// with `ascii`, a byte outside ASCII.
#[inline]
fn plain_prefix(bytes: &[u8], ascii: bool) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        // The first of the eight bytes is the lowest byte of the word.
        let word = u64::from_le_bytes(*word);
        let other = if ascii { word & splat(0x80) } else { 0 };
        let found = less(word, 0x20) | less(word ^ splat(b'"'), 1) | less(word ^ splat(b'\\'), 1) | other;
        if found != 0 {
            return i * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let plain = |&b: &u8| b >= 0x20 && b != b'"' && b != b'\\' && !(ascii && b >= 0x80);
    bytes.len() - rest.len() + rest.iter().position(|b| !plain(b)).unwrap_or(rest.len())
}

/// Writes `text` as a JSON string and escapes every character outside ASCII.
///
/// `text` is UTF-8 that may contain lone surrogates, encoded like other code points. They are written as `\udXXX`.
pub fn write_string(text: &[u8], out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"\"")?;
    let mut rest = text;
    loop {
        let (plain, other) = rest.split_at(plain_prefix(rest, true));
        out.write_all(plain)?;
        if other.is_empty() {
            return out.write_all(b"\"");
        }
        let (code, width) = code_point(other);
        write_escape(code, out)?;
        rest = &other[width..];
    }
}

fn write_escape(code: u32, out: &mut impl Write) -> io::Result<()> {
    match code {
        0x22 => out.write_all(b"\\\""),
        0x5c => out.write_all(b"\\\\"),
        0x0a => out.write_all(b"\\n"),
        0x0d => out.write_all(b"\\r"),
        0x09 => out.write_all(b"\\t"),
        0x08 => out.write_all(b"\\b"),
        0x0c => out.write_all(b"\\f"),
        0..0x10000 => out.write_all(&unicode_escape(code)),
        _ => {
            let offset = code - 0x10000;
            out.write_all(&unicode_escape(0xd800 + (offset >> 10)))?;
            out.write_all(&unicode_escape(0xdc00 + (offset & 0x3ff)))
        }
    }
}

fn unicode_escape(unit: u32) -> [u8; 6] {
    let digit = |shift: u32| b"0123456789abcdef"[(unit >> shift & 15) as usize];
    [b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]
}

/// Returns the first code point of generalized UTF-8 and its width in bytes. An invalid byte decodes to U+FFFD.
fn code_point(bytes: &[u8]) -> (u32, usize) {
    let tail = |i: usize| bytes.get(i).map(|b| (b & 0x3f) as u32);
    match bytes[0] {
        first @ 0..0x80 => (first as u32, 1),
        first @ 0xc0..0xe0 if bytes.len() >= 2 => ((first as u32 & 0x1f) << 6 | tail(1).unwrap_or(0), 2),
        first @ 0xe0..0xf0 if bytes.len() >= 3 => (
            (first as u32 & 0x0f) << 12 | tail(1).unwrap_or(0) << 6 | tail(2).unwrap_or(0),
            3,
        ),
        first @ 0xf0..0xf8 if bytes.len() >= 4 => {
            let high = (first as u32 & 0x07) << 18 | tail(1).unwrap_or(0) << 12;
            (high | tail(2).unwrap_or(0) << 6 | tail(3).unwrap_or(0), 4)
        }
        _ => (0xfffd, 1),
    }
}

/// Appends a code point, which may be a lone surrogate, as generalized UTF-8.
pub fn push_code_point(code: u32, out: &mut Vec<u8>) {
    match code {
        0..0x80 => out.push(code as u8),
        0x80..0x800 => out.extend([0xc0 | (code >> 6) as u8, 0x80 | (code & 0x3f) as u8]),
        0x800..0x10000 => {
            out.extend([
                0xe0 | (code >> 12) as u8,
                0x80 | (code >> 6 & 0x3f) as u8,
                0x80 | (code & 0x3f) as u8,
            ]);
        }
        _ => out.extend([
            0xf0 | (code >> 18) as u8,
            0x80 | (code >> 12 & 0x3f) as u8,
            0x80 | (code >> 6 & 0x3f) as u8,
            0x80 | (code & 0x3f) as u8,
        ]),
    }
}

/// Reads a JSON string, with optional white space around it, and appends it to `out` as generalized UTF-8.
///
/// After an error, `out` may contain a part of the string.
pub fn read_string(text: &str, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut reader = Reader::new(text);
    reader.space();
    reader.string(out)?;
    reader.space();
    reader.end()
}

/// Reads a JSON object of strings, one name and value at a time. Names may occur more than once.
///
/// White space is allowed wherever `json.loads` allows it, except before the object.
pub struct ObjectReader<'a> {
    reader: Reader<'a>,
    begun: bool,
}

impl<'a> ObjectReader<'a> {
    pub fn new(text: &'a str) -> ObjectReader<'a> {
        ObjectReader {
            reader: Reader::new(text),
            begun: false,
        }
    }

    /// Reads the next name, or returns `None` at the end. Call [`ObjectReader::value`] next. `room` is a buffer for
    /// names with escapes.
    pub fn name<'s>(&mut self, room: &'s mut Vec<u8>) -> Result<Option<&'s [u8]>, &'static str>
    where
        'a: 's,
    {
        let reader = &mut self.reader;
        if self.begun {
            reader.space();
        } else {
            reader.expect(b'{', "expected '{'")?;
            reader.space();
        }
        if reader.take(b'}') {
            reader.space();
            reader.end()?;
            return Ok(None);
        }
        if self.begun {
            reader.expect(b',', "expected ',' or '}' after a value")?;
            reader.space();
        }
        self.begun = true;
        let name = reader.name(room)?;
        reader.space();
        reader.expect(b':', "expected ':' after a variable name")?;
        reader.space();
        Ok(Some(name))
    }

    /// Appends the value of the last name to `out`.
    pub fn value(&mut self, out: &mut Vec<u8>) -> Result<(), &'static str> {
        self.reader.string(out)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Reader<'a> {
        Reader {
            bytes: text.as_bytes(),
            at: 0,
        }
    }

    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), &'static str> {
        if self.take(byte) { Ok(()) } else { Err(reason) }
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err("unexpected text after the JSON value")
        }
    }

    /// Reads a string. Borrows it from the input if it has no escapes.
    fn name<'s>(&mut self, room: &'s mut Vec<u8>) -> Result<&'s [u8], &'static str>
    where
        'a: 's,
    {
        if let Some((b'"', rest)) = self.bytes[self.at..].split_first() {
            let plain = plain_prefix(rest, false);
            if rest.get(plain) == Some(&b'"') {
                self.at += plain + 2;
                return Ok(&rest[..plain]);
            }
        }
        room.clear();
        self.string(room)?;
        Ok(room)
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), &'static str> {
        self.expect(b'"', "expected a JSON string")?;
        loop {
            let rest = &self.bytes[self.at..];
            let plain = plain_prefix(rest, false);
            let end = *rest.get(plain).ok_or("unterminated JSON string")?;
            out.extend_from_slice(&rest[..plain]);
            self.at += plain + 1;
            match end {
                b'"' => return Ok(()),
                b'\\' => self.escape(out)?,
                _ => return Err("control character in a JSON string"),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let kind = *self.bytes.get(self.at).ok_or("unterminated JSON string")?;
        self.at += 1;
        let byte = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let code = self.unicode_escape()?;
                push_code_point(code, out);
                return Ok(());
            }
            _ => return Err("unknown escape in a JSON string"),
        };
        out.push(byte);
        Ok(())
    }

    /// Reads the code point of `XXXX`, or of `XXXX\uXXXX` if the two form a surrogate pair.
    fn unicode_escape(&mut self) -> Result<u32, &'static str> {
        let high = self.hex()?;
        if (0xd800..0xdc00).contains(&high) && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            match self.hex()? {
                low @ 0xdc00..0xe000 => return Ok(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)),
                _ => self.at = back,
            }
        }
        Ok(high)
    }

    fn hex(&mut self) -> Result<u32, &'static str> {
        let digits = self
            .bytes
            .get(self.at..self.at + 4)
            .ok_or("incomplete \\u escape in a JSON string")?;
        self.at += 4;
        digits.iter().try_fold(0, |code, &digit| {
            (digit as char)
                .to_digit(16)
                .map(|d| code << 4 | d)
                .ok_or("invalid \\u escape in a JSON string")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dumps(text: &str) -> String {
        let mut out = Vec::new();
        write_string(text.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn parse_string(text: &str) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        read_string(text, &mut out).map(|()| out)
    }

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn parse_object(text: &str) -> Result<Pairs, &'static str> {
        let (mut reader, mut room, mut pairs) = (ObjectReader::new(text), Vec::new(), Pairs::new());
        while let Some(name) = reader.name(&mut room)? {
            let mut value = Vec::new();
            reader.value(&mut value)?;
            pairs.push((name.to_vec(), value));
        }
        Ok(pairs)
    }

    #[test]
    fn writes_as_python_does() {
        assert_eq!(
            dumps("a\"b\\c\n\r\t\u{8}\u{c}\u{1}\u{7f}"),
            "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\u{7f}\""
        );
        assert_eq!(dumps("é√😀"), r#""\u00e9\u221a\ud83d\ude00""#);
    }

    #[test]
    fn lone_surrogates_survive() {
        let text = parse_string(r#""\ud800x\udc00\ud83d\ude00\ud83d""#).unwrap();
        let mut out = Vec::new();
        write_string(&text, &mut out).unwrap();
        assert_eq!(out, br#""\ud800x\udc00\ud83d\ude00\ud83d""#);
    }

    #[test]
    fn refuses_what_json_loads_refuses() {
        for text in [
            "",
            "a",
            "\"",
            "\"\n\"",
            r#""\x""#,
            r#""\u12""#,
            r#""\u12g4""#,
            r#""a" b"#,
            "1",
        ] {
            assert!(parse_string(text).is_err(), "{text:?}");
        }
        for text in [
            "",
            " {}",
            "{",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":1}"#,
            r#"{"a":"1",}"#,
            r#"{"a":"1""#,
            r#"{"a":"1"}x"#,
            r#"["a"]"#,
        ] {
            assert!(parse_object(text).is_err(), "{text:?}");
        }
        let pairs = parse_object("{ \"a\" :\n\"1\" , \"\\u0062\":\"2\" } \t").unwrap();
        assert_eq!(pairs, [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    }

    proptest! {
        #[test]
        fn strings_come_back(text in any::<String>()) {
            prop_assert_eq!(parse_string(&dumps(&text)).unwrap(), text.as_bytes());
        }

        #[test]
        fn plain_bytes_end_where_one_by_one_they_do(bytes in any::<Vec<u8>>(), printable in "[ -~]{0,40}", ascii: bool) {
            let bytes = [printable.as_bytes(), &bytes].concat();
            let plain = |b: &u8| !(*b < 0x20 || matches!(b, b'"' | b'\\') || ascii && *b >= 0x80);
            prop_assert_eq!(plain_prefix(&bytes, ascii), bytes.iter().take_while(|b| plain(b)).count());
        }

        #[test]
        fn any_text_is_total(text in any::<String>()) {
            let _ = parse_string(&text);
            let _ = parse_object(&text);
        }
    }
}
