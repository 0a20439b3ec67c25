//! Seeded pseudorandom permutations that take no memory: a Feistel network over pairs of numbers below the square root
//! of the range, applied until the result is inside the range (Black and Rogaway, "Ciphers with Arbitrary Finite
//! Domains", 2002).

const ROUNDS: usize = 8;
/// A smaller side has too few permutations to choose from. With this one, at most 64 numbers are walked.
const MIN_SIDE: u64 = 8;

#[derive(Clone)]
pub struct Permutation {
    n: u64,
    side: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Creates a permutation of `0..n`. Equal seeds give equal permutations.
    pub fn new(n: u64, seed: u64) -> Permutation {
        let root = n.isqrt();
        let side = if root * root == n { root } else { root + 1 };
        let mut keys = [0; ROUNDS];
        let mut key = seed;
        for k in &mut keys {
            key = mix64(key);
            *k = key;
        }
        Permutation {
            n,
            side: side.max(MIN_SIDE),
            keys,
        }
    }

    /// Returns the image of `i`. Panics unless `i < n`.
    pub fn get(&self, i: u64) -> u64 {
        assert!(i < self.n, "{i} is outside 0..{}", self.n);
        self.get_from(i)
    }

    /// Computes the images of the numbers from `first` on. Computing several at once is much faster than one after the
    /// other, because each is a long chain of dependent steps. Panics unless all are below `n`.
    pub fn fill<const MANY: usize>(&self, first: u64, out: &mut [u64; MANY]) {
        assert!(
            MANY as u64 <= self.n && first <= self.n - MANY as u64,
            "numbers from {first} on extend past 0..{}",
            self.n
        );
        let (mut left, mut right) = ([0; MANY], [0; MANY]);
        for lane in 0..MANY {
            let i = first + lane as u64;
            (left[lane], right[lane]) = (i / self.side, i % self.side);
        }
        for key in self.keys {
            for lane in 0..MANY {
                (left[lane], right[lane]) = self.round(left[lane], right[lane], key);
            }
        }
        for lane in 0..MANY {
            let i = left[lane] * self.side + right[lane];
            out[lane] = if i < self.n { i } else { self.get_from(i) };
        }
    }

    /// Applies the network to `i` until the result is inside the range.
    fn get_from(&self, i: u64) -> u64 {
        let mut i = i;
        loop {
            i = self.network(i);
            if i < self.n {
                return i;
            }
        }
    }

    fn network(&self, i: u64) -> u64 {
        let (mut left, mut right) = (i / self.side, i % self.side);
        for key in self.keys {
            (left, right) = self.round(left, right, key);
        }
        // No overflow: sides are at most 2^32, so the result is at most 2^64 - 1.
        left * self.side + right
    }

    #[inline]
    fn round(&self, left: u64, right: u64, key: u64) -> (u64, u64) {
        let sum = left + below(mix64(right ^ key), self.side);
        (right, if sum >= self.side { sum - self.side } else { sum })
    }
}

/// Maps 64 random bits to a number below `bound`, almost uniformly (Lemire, "Fast Random Integer Generation in an
/// Interval", 2019).
pub fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// Computes one step of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
pub fn mix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_bijection(n in 1u64..5000, seed: u64) {
            let permutation = Permutation::new(n, seed);
            let mut image: Vec<u64> = (0..n).map(|i| permutation.get(i)).collect();
            image.sort_unstable();
            prop_assert!(image.into_iter().eq(0..n));
        }

        #[test]
        fn many_at_once_equal_one_after_the_other(n in 8u64.., seed: u64, first: u64) {
            let (permutation, first) = (Permutation::new(n, seed), first % (n - 7));
            let mut many = [0; 8];
            permutation.fill(first, &mut many);
            for (i, image) in (first..).zip(many) {
                prop_assert_eq!(image, permutation.get(i));
            }
        }

        #[test]
        fn stays_inside_a_large_range(n in 1u64.., seed: u64, i: u64) {
            prop_assert!(Permutation::new(n, seed).get(i % n) < n);
        }
    }

    /// Over many seeds every value must come first, and last, about equally often.
    #[test]
    fn every_value_is_equally_likely() {
        const SEEDS: u64 = 20_000;
        for n in [2, 3, 5, 10, 33] {
            for place in [0, n - 1] {
                let mut counts = vec![0f64; n as usize];
                for seed in 0..SEEDS {
                    counts[Permutation::new(n, seed).get(place) as usize] += 1.0;
                }
                let expected = SEEDS as f64 / n as f64;
                let chi_squared: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
                // Mean n - 1, variance 2 (n - 1): five standard deviations out.
                let free = (n - 1) as f64;
                assert!(
                    chi_squared < free + 5.0 * (2.0 * free).sqrt() + 5.0,
                    "n {n}, place {place}: {chi_squared}"
                );
            }
        }
    }
}
