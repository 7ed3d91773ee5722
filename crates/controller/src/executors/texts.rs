//! What executors say of themselves, kept within what a record may hold.

/// Longest reference to an image, in bytes: a name of 255 characters, and a digest.
const IMAGE_BYTES: usize = 330;

/// Keeps an executor's texts within what a record may hold.
pub(super) fn clip(text: &str, bytes: usize) -> String {
    let clean = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    if text.len() <= bytes {
        return text.chars().map(clean).collect();
    }
    let room = bytes.saturating_sub('…'.len_utf8());
    let kept = text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= room);
    kept.map(|(_, c)| clean(c)).chain(['…']).collect()
}

/// An image as an executor reports it; what can be none is left out. One that was cut would be another's, or nobody's.
pub(super) fn image_of(reported: String) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@+".contains(&byte);
    if reported.len() <= IMAGE_BYTES && reported.bytes().all(fits) { reported } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_kept_whole_or_not_at_all() {
        let image = format!("registry.example:5000/team/refund@sha256:{}", "0".repeat(64));
        assert_eq!(image_of(image.clone()), image);
        for none in ["refund\u{1b}[2J", "a \"b\"", &"x".repeat(IMAGE_BYTES + 1)] {
            assert_eq!(image_of(none.to_owned()), "");
        }
    }

    #[test]
    fn texts_are_cut_between_characters_and_hold_no_control_characters() {
        assert_eq!(clip("a\u{1b}[31m\u{9b}b\n", 100), "a [31m b\n");
        assert_eq!(clip("äöü", 6), "äöü");
        assert_eq!(clip("äöüß", 7), "äö…");
        assert_eq!(clip("äöüß", 2), "…");
    }
}
