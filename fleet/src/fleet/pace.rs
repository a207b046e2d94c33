//! How much to read for an answer. Pure.
//!
//! A page without a limit is 1 MB, thousands of items, of which an answer of a hundred throws most away where many fit. So
//! the first page looks at little more than is wanted, and each next one at as many as the ones before let expect. Where
//! few fit, pages are whole after two or three.

/// Looked at first, for each item that is wanted.
const FIRST_FACTOR: u64 = 2;
/// Grows so much while nothing fits.
const GROWS_BY: u64 = 8;
/// Looked at more than that, a page is read whole: it holds hardly more.
const LIMITED_MAX: u64 = 4_000;

/// How many items to look at for `missing` more, after `matched` of `examined` fitted; `None` for a whole page.
pub(super) fn look_at(missing: usize, matched: usize, examined: u64) -> Option<i32> {
    let (missing, matched) = (missing as u64, matched as u64);
    let wanted = if examined == 0 {
        missing.saturating_mul(FIRST_FACTOR)
    } else if matched == 0 {
        examined.saturating_mul(GROWS_BY)
    } else {
        // A quarter more than the share lets expect: a second page for the last few costs more.
        missing.saturating_mul(examined).div_ceil(matched).saturating_mul(5).div_ceil(4)
    };
    Some(wanted.max(1)).filter(|wanted| *wanted <= LIMITED_MAX).and_then(|wanted| i32::try_from(wanted).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_all_fit_little_is_read_and_where_none_fit_pages_are_soon_whole() {
        assert_eq!(look_at(100, 0, 0), Some(200));
        assert_eq!(look_at(40, 60, 200), Some(168));
        assert_eq!(look_at(1, 99, 100), Some(3));
        assert_eq!([look_at(100, 0, 200), look_at(100, 0, 1_800)], [Some(1_600), None]);
        assert_eq!([look_at(0, 5, 5), look_at(usize::MAX, 1, u64::MAX)], [Some(1), None]);
    }
}
