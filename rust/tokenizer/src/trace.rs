//! Encoding traces to token ids, and parsing them, without intermediate text.

use std::ops::Range;

use cwm_trace::{FrameRef, Parsed, Part, Piece, Renderer, Special, TokenParser, Trace};

use crate::error::Result;
use crate::{Encoder, Tokenizer};

/// The tokens of a trace. Each part is encoded separately, and special tokens between the parts are inserted by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceTokens {
    pub ids: Vec<u32>,
    /// Number of tokens before the first frame: the context and the special tokens around it.
    pub context: usize,
    /// Positions of the state, action, and value of each frame in `ids`. `None` for a part that the event does not
    /// have.
    pub frames: Vec<FrameSpans>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameSpans {
    pub state: Option<Range<usize>>,
    pub action: Range<usize>,
    pub value: Option<Range<usize>>,
}

impl Tokenizer {
    /// Encodes a trace. Fails if the vocabulary lacks a special token of the trace format.
    pub fn encode_trace(&self, trace: &Trace) -> Result<Vec<u32>> {
        Ok(self.encode_frames(trace, |_| ())?.0)
    }

    /// Encodes a trace and returns the positions of its parts. Fails if `encode_trace` does.
    pub fn trace_tokens(&self, trace: &Trace) -> Result<TraceTokens> {
        let mut frames = Vec::with_capacity(trace.frames().len());
        let (ids, context) = self.encode_frames(trace, |spans| frames.push(spans))?;
        Ok(TraceTokens { ids, context, frames })
    }

    /// Returns the ids, and the number of ids before the first frame.
    fn encode_frames(&self, trace: &Trace, mut sink: impl FnMut(FrameSpans)) -> Result<(Vec<u32>, usize)> {
        let mut encoder = TraceEncoder::new(self, trace)?;
        trace.for_each_context_part(|part| {
            encoder.push(part);
        });
        let context = encoder.ids.len();
        let mut renderer = Renderer::new(trace);
        for frame in trace.frames() {
            sink(encoder.push_frame(frame, &mut renderer));
            if encoder.failed.is_err() {
                break;
            }
        }
        if trace.is_complete() {
            encoder.push(Part::Special(Special::EndOfText));
        }
        encoder.failed?;
        Ok((encoder.ids, context))
    }

    /// Parses any ids. Returns the longest well-formed prefix of frames, and the reason why the rest is malformed.
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

/// Estimated tokens per frame, to reserve memory.
const TOKENS_OF_A_FRAME: usize = 24;

struct TraceEncoder<'t> {
    encoder: Encoder<'t>,
    special: [u32; Special::ALL.len()],
    ids: Vec<u32>,
    /// Positions in `ids` of the tokens of each source line. Most frames repeat a line.
    lines: Vec<Option<Range<usize>>>,
    /// Tokens of each shape.
    shapes: Vec<ShapeTokens>,
    failed: Result<()>,
}

/// Tokens of the LOCALS of a shape with all variables unchanged. Most frames change one or two of many variables.
#[derive(Default)]
struct ShapeTokens {
    /// Number of frames of this shape so far. The other fields are filled once there are enough to be worth it.
    seen: u32,
    ids: Vec<u32>,
    /// Ends of the tokens of each segment (see [`Renderer::for_each_segment`]). Empty if the segments cannot be encoded
    /// separately.
    ends: Vec<usize>,
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
            ids: Vec::with_capacity(trace.context.len() / 3 + trace.frames().len() * TOKENS_OF_A_FRAME),
            lines: vec![None; trace.lines().len()],
            shapes: (0..trace.shape_count()).map(|_| ShapeTokens::default()).collect(),
            failed: Ok(()),
        })
    }

    fn push_frame(&mut self, frame: FrameRef<'_>, renderer: &mut Renderer<'_>) -> FrameSpans {
        let mut spans = FrameSpans::default();
        if frame.event().has_locals() && self.push_locals(frame, renderer, &mut spans) {
            return spans;
        }
        let mut is_value = false;
        renderer.for_each_part(frame, |part| {
            let span = self.push(part);
            match part {
                Part::Special(special) => is_value = special == Special::ArgSep,
                Part::Line(..) => spans.action = span,
                Part::Text(_) if is_value => spans.value = Some(span),
                Part::Text(_) => spans.state = Some(span),
            }
        });
        spans
    }

    /// Appends a CALL or LINE frame segment by segment. Returns false if the segments cannot be encoded separately.
    fn push_locals(&mut self, frame: FrameRef<'_>, renderer: &mut Renderer<'_>, spans: &mut FrameSpans) -> bool {
        const ENOUGH: u32 = 3;
        let shape = frame.shape_id();
        let mut tokens = std::mem::take(&mut self.shapes[shape as usize]);
        tokens.seen += 1;
        if tokens.seen == ENOUGH {
            self.fill_shape(shape, &mut tokens, renderer);
        }
        let can = !tokens.ends.is_empty();
        if can {
            self.push(Part::Special(frame.event().special()));
            let start = self.ids.len();
            let mut copied = 0;
            renderer.for_each_changed_segment(frame, |slot, text| {
                self.ids.extend_from_slice(&tokens.ids[copied..tokens.ends[slot]]);
                self.push_text(text);
                copied = tokens.ends[slot + 1];
            });
            self.ids.extend_from_slice(&tokens.ids[copied..]);
            spans.state = Some(start..self.ids.len());
            self.push(Part::Special(Special::ActionSep));
            spans.action = self.push(Part::Line(frame.line_id(), &frame.line().text));
            self.push(Part::Special(Special::FrameSep));
        }
        self.shapes[shape as usize] = tokens;
        can
    }

    /// Encodes the segments of a shape. A piece always ends between a letter or digit and a quote, so if every name
    /// ends with a letter or digit, no segment affects the tokens of another.
    fn fill_shape(&mut self, shape: u32, tokens: &mut ShapeTokens, renderer: &mut Renderer<'_>) {
        if !self.encoder.ends_words_at_quotes() {
            return;
        }
        let (mut separate, mut ended) = (true, true);
        renderer.for_each_segment(shape, |segment| {
            separate &= ended;
            ended = segment.ends_with(|last: char| last.is_ascii_alphanumeric());
            if let Err(error) = self.encoder.encode(segment, &mut tokens.ids) {
                self.failed = Err(error);
            }
            tokens.ends.push(tokens.ids.len());
        });
        if !separate {
            tokens.ends.clear();
        }
    }

    fn push(&mut self, part: Part<'_>) -> Range<usize> {
        let start = self.ids.len();
        match part {
            Part::Special(special) => self.ids.push(self.special[special as usize]),
            Part::Text(text) => self.push_text(text),
            Part::Line(line, text) => match self.lines[line as usize].clone() {
                Some(span) => self.ids.extend_from_within(span),
                None => {
                    self.push_text(text);
                    self.lines[line as usize] = Some(start..self.ids.len());
                }
            },
        }
        start..self.ids.len()
    }

    fn push_text(&mut self, text: &str) {
        if let Err(error) = self.encoder.encode(text, &mut self.ids) {
            self.failed = Err(error);
        }
    }
}
