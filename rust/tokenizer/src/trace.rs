//! Traces to token ids and back, without text in between.

use std::ops::Range;

use cwm_trace::{Parsed, Part, Piece, Renderer, Special, TokenParser, Trace};

use crate::error::Result;
use crate::{Encoder, Tokenizer};

/// A trace in tokens: each part encoded by itself, the special tokens between them by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceTokens {
    pub ids: Vec<u32>,
    /// Tokens before the first frame: the context and the special tokens around it.
    pub context: usize,
    /// For each frame, where in `ids` its state, action and value are; `None` for a part that its event does not have.
    pub frames: Vec<FrameSpans>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameSpans {
    pub state: Option<Range<usize>>,
    pub action: Range<usize>,
    pub value: Option<Range<usize>>,
}

impl Tokenizer {
    /// Fails if the vocabulary lacks one of the format's special tokens.
    pub fn encode_trace(&self, trace: &Trace) -> Result<TraceTokens> {
        let mut encoder = TraceEncoder::new(self, trace)?;
        let mut tokens = TraceTokens::default();
        trace.for_each_context_part(|part| encoder.push(part));
        tokens.context = encoder.ids.len();
        let mut renderer = Renderer::new(trace);
        for frame in trace.frames() {
            let mut spans = FrameSpans::default();
            let mut is_value = false;
            renderer.for_each_part(frame, |part| {
                let start = encoder.ids.len();
                encoder.push(part);
                let span = start..encoder.ids.len();
                match part {
                    Part::Special(special) => is_value = special == Special::ArgSep,
                    Part::Line(..) => spans.action = span,
                    Part::Text(_) if is_value => spans.value = Some(span),
                    Part::Text(_) => spans.state = Some(span),
                }
            });
            tokens.frames.push(spans);
        }
        if trace.is_complete() {
            encoder.push(Part::Special(Special::EndOfText));
        }
        encoder.failed?;
        tokens.ids = encoder.ids;
        Ok(tokens)
    }

    /// Reads any ids: the longest well-formed prefix of frames, and why the rest is none.
    pub fn parse_trace(&self, ids: &[i32]) -> Parsed {
        let trace_token = |id: u32| {
            Special::ALL
                .into_iter()
                .find(|s| self.special_tokens().name(id) == Some(s.name()))
        };
        let mut parser = TokenParser::default();
        let mut run = Vec::new();
        let mut run_start = 0;
        for (&id, at) in ids.iter().zip(0..) {
            let id = id as u32; // a negative id becomes one that no vocabulary has
            if let Some(bytes) = self.vocabulary().token(id) {
                if run.is_empty() {
                    run_start = at;
                }
                run.extend_from_slice(bytes);
                continue;
            }
            let special = trace_token(id).map_or(Piece::Foreign(id), Piece::Special);
            if !(run.is_empty() || parser.feed(run_start, Piece::Bytes(&run))) || !parser.feed(at, special) {
                return parser.finish();
            }
            run.clear();
        }
        if !run.is_empty() {
            parser.feed(run_start, Piece::Bytes(&run));
        }
        parser.finish()
    }
}

struct TraceEncoder<'t> {
    encoder: Encoder<'t>,
    special: [u32; Special::ALL.len()],
    ids: Vec<u32>,
    /// Where the tokens of each source line already are in `ids`: most steps repeat a line.
    lines: Vec<Option<Range<usize>>>,
    failed: Result<()>,
}

impl<'t> TraceEncoder<'t> {
    fn new(tokenizer: &'t Tokenizer, trace: &Trace) -> Result<Self> {
        let mut special = [0; Special::ALL.len()];
        for token in Special::ALL {
            special[token as usize] = tokenizer.special_tokens().id(token.name())?;
        }
        Ok(Self {
            encoder: tokenizer.encoder(),
            special,
            ids: Vec::new(),
            lines: vec![None; trace.lines().len()],
            failed: Ok(()),
        })
    }

    fn push(&mut self, part: Part<'_>) {
        match part {
            Part::Special(special) => self.ids.push(self.special[special as usize]),
            Part::Text(text) => self.push_text(text),
            Part::Line(line, text) => match self.lines[line as usize].clone() {
                Some(span) => self.ids.extend_from_within(span),
                None => {
                    let start = self.ids.len();
                    self.push_text(text);
                    self.lines[line as usize] = Some(start..self.ids.len());
                }
            },
        }
    }

    fn push_text(&mut self, text: &str) {
        if let Err(error) = self.encoder.encode(text, &mut self.ids) {
            self.failed = Err(error);
        }
    }
}
