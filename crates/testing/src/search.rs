//! Searches large dumps.
//!
//! Here because the tests of the commands are not optimised, and search several GiB.

/// The first of `any` in `dump`, by its position. By the first two bytes, because there can be much
/// to search.
///
/// # Panics
/// If one of them has less than four bytes, and would be found by chance.
#[must_use]
pub fn first_of<'a>(any: &'a [Vec<u8>], dump: &[u8]) -> Option<&'a [u8]> {
    let mut starts = vec![false; 1 << 16];
    for wanted in any {
        assert!(wanted.len() >= 4);
        starts[start(wanted)] = true;
    }
    let places = dump.len().saturating_sub(1);
    for at in 0..places {
        if starts[start(&dump[at..])] {
            let found = any.iter().find(|wanted| dump[at..].starts_with(wanted));
            if let Some(found) = found {
                return Some(found);
            }
        }
    }
    None
}

fn start(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search__finds_at_both_ends_and_only_whole() {
        let any = [b"abcd".to_vec(), b"abce".to_vec()];
        assert_eq!(first_of(&any, b"abcd"), Some(&b"abcd"[..]));
        assert_eq!(first_of(&any, b"xabababce"), Some(&b"abce"[..]));
        assert_eq!(first_of(&any, b"abcabc"), None);
        assert_eq!(first_of(&any, b""), None);
    }
}
