use cwm_tokenizer::*;
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t0 = Instant::now();
    let vocab = Tokenizer::vocabulary_from_ranks(&std::fs::read(&a[1]).unwrap()).unwrap();
    println!("load {:?}", t0.elapsed());
    let tok =
        Tokenizer::with_special_names(vocab, Splitter::new(LLAMA3_PATTERN).unwrap(), cwm_special_tokens()).unwrap();
    for f in &a[3..] {
        let data = std::fs::read_to_string(f).unwrap();
        let texts: Vec<&str> = data.split('\0').collect();
        let sp = Splitter::new(LLAMA3_PATTERN).unwrap();
        let mut n = 0usize;
        let mut seen = std::collections::HashMap::<&str, usize>::new();
        for t in &texts {
            sp.for_each(t, |p| {
                n += 1;
                *seen.entry(p).or_default() += 1;
            })
            .unwrap();
        }
        println!(
            "{f}: {} bytes {} pieces {} distinct, short {}, avg {:.2}",
            data.len(),
            n,
            seen.len(),
            seen.keys().filter(|k| k.len() <= 15).count(),
            data.len() as f64 / n as f64
        );
        let long: usize = seen.iter().filter(|(k, _)| k.len() > 15).map(|(_, c)| c).sum();
        println!("  long pieces {:.2}%", 100.0 * long as f64 / n as f64);
        drop(seen);
        let s = Instant::now();
        let mut k = 0usize;
        for t in &texts {
            sp.for_each_batch(t, &mut Default::default(), |e| k += e.len()).unwrap();
        }
        println!(
            "  split {:.0} MB/s {k}",
            data.len() as f64 / s.elapsed().as_secs_f64() / 1e6
        );
        let mut enc = tok.clone();
        let _ = &mut enc;

        let mut out = Vec::new();
        for _ in 0..a[2].parse::<usize>().unwrap() {
            let s = Instant::now();
            let mut c = 0;
            let fresh = tok.clone();
            let mut e = fresh.encoder();
            for t in &texts {
                out.clear();
                e.encode(t, &mut out).unwrap();
                c += out.len();
            }
            print!("  {:.0} MB/s", data.len() as f64 / s.elapsed().as_secs_f64() / 1e6);
            if c == 0 {
                println!();
            }
        }
        println!();
    }
}
