//! Patterns of Hugging Face's `tokenizers`, compiled by its engine, Oniguruma.

use std::sync::Arc;

use onig::{MatchParam, Regex, Region, SearchOptions};

use crate::error::{Error, Result};

/// Limit of stack entries for one match, about 40 bytes each. Catastrophic patterns stop earlier, at the engine's own
/// limit of ten million retries.
const STACK_LIMIT: u32 = 1 << 24;

/// A pattern compiled by Oniguruma with the options of `tokenizers`.
#[derive(Debug, Clone)]
pub struct Oniguruma(Arc<Regex>);

impl Oniguruma {
    pub fn new(pattern: &str) -> Result<Self> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Self(Arc::new(regex))),
            Err(why) => Err(Error::Pattern(format!(
                "{pattern:?} does not compile: {}",
                why.description()
            ))),
        }
    }

    /// Iterates over start and end of each match in `text`. Skips an empty match at the end of the previous match.
    pub fn find_iter<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Result<(usize, usize)>> + 'a {
        let mut region = Region::new();
        // Start of the next search and end of the last match. `None` after the last match.
        let mut state = Some((0, None));
        std::iter::from_fn(move || {
            loop {
                let (from, end) = state.take().filter(|&(from, _)| from <= text.len())?;
                match self.find(text, from, &mut region) {
                    Err(why) => return Some(Err(why)),
                    Ok(None) => return None,
                    Ok(Some(found)) if found == (found.1, found.1) && end == Some(found.1) => {
                        let skipped = text[from..].chars().next().map_or(1, char::len_utf8);
                        state = Some((from + skipped, end));
                    }
                    Ok(Some(found)) => {
                        state = Some((found.1, Some(found.1)));
                        return Some(Ok(found));
                    }
                }
            }
        })
    }

    fn find(&self, text: &str, from: usize, region: &mut Region) -> Result<Option<(usize, usize)>> {
        if i32::try_from(text.len()).is_err() {
            // The engine counts bytes in a C int.
            return Err(Error::Pattern(format!(
                "a text of {} bytes is too long for a pattern that is split by a regular expression engine: the limit \
                 is 2 GiB",
                text.len()
            )));
        }
        let mut limits = MatchParam::default();
        limits.set_match_stack_limit(STACK_LIMIT);
        region.clear();
        let options = SearchOptions::SEARCH_OPTION_NONE;
        match self
            .0
            .search_with_param(text, from, text.len(), options, Some(region), limits)
        {
            Ok(found) => Ok(found.and_then(|_| region.pos(0))),
            Err(why) => Err(Error::Pattern(format!(
                "gave up after byte {from}: {}",
                why.description()
            ))),
        }
    }
}
