//! What someone may have meant: the nearest of the known words, for errors that end in a suggestion.

/// Longest word, in bytes, that is compared: longer ones are nobody's slip, and comparing takes time by the square.
const LONGEST: usize = 256;

/// The candidate most like `given`, if any is near enough to be a likely slip.
#[must_use]
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > LONGEST {
        return None;
    }
    let folded = given.to_lowercase();
    let allowed = (given.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .filter_map(|candidate| {
            let other = candidate.to_lowercase();
            let distance = strsim::damerau_levenshtein(&folded, &other);
            let extends = folded.len() >= 3 && (other.starts_with(&folded) || folded.starts_with(&other) && other.len() >= 3);
            (distance <= allowed || extends).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["timeout", "retries", "image_name"];
        assert_eq!(nearest("timout", known), Some("timeout"));
        assert_eq!(nearest("Retires", known), Some("retries"));
        assert_eq!(nearest("image", known), Some("image_name"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", ["y", "order"]), Some("y"));
        let long = "x".repeat(4 << 20);
        assert_eq!(nearest(&long, [long.as_str()]), None, "a flood is not worth the comparison");
    }
}
