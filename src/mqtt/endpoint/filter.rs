//! Topic names and filters (MQTT 3.1.1 §4.7): validity, matching, and whether two filters have a topic in common.
//!
//! The codec's own functions are not used: its matcher cuts the topic after one byte and panics where that is not a
//! character boundary, and its validity test lets NUL pass.

/// Longest topic name or filter taken, bytes. Ours have at most 576; beyond, the packet counts as malformed.
pub(super) const TOPIC_MAX: usize = 1_024;

/// Whether `topic` can be published to.
pub(super) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= TOPIC_MAX && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` can be subscribed to.
pub(super) fn is_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > TOPIC_MAX || filter.contains('\0') {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let fits = match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            text => !text.contains(['+', '#']),
        };
        if !fits {
            return false;
        }
    }
    true
}

/// Whether `topic` is among those `filter` names. Wild cards do not reach topics that begin with `$`.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topics = topic.split('/');
    for level in filter.split('/') {
        match (level, topics.next()) {
            // `a/#` names `a` too [4.7.1.2], so nothing has to be left.
            ("#", _) => return true,
            (_, None) => return false,
            ("+", Some(_)) => {}
            (text, Some(found)) if text == found => {}
            _ => return false,
        }
    }
    topics.next().is_none()
}

/// Whether some topic is named by both filters.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let wild = |text: &str| text.starts_with(['+', '#']);
    if (a.starts_with('$') && wild(b)) || (b.starts_with('$') && wild(a)) {
        return false;
    }
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    loop {
        match (left.next(), right.next()) {
            (None, None) | (Some("#"), _) | (_, Some("#")) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_matches_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "anything/at/all", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/uptime", "$SYS/uptime", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("ü/+", "ü/x", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn wild_cards_stand_alone_in_their_level() {
        for filter in ["#", "+", "a/#", "a/+/b", "/", "+/#", "ü"] {
            assert!(is_filter(filter), "{filter}");
        }
        for filter in ["", "a#", "a/#/b", "a+", "+a/b", "a/b+", "a\0b", &"x".repeat(TOPIC_MAX + 1)] {
            assert!(!is_filter(filter), "{filter}");
        }
        for topic in ["", "a/+", "#", "a\0"] {
            assert!(!is_topic(topic), "{topic}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_filter_matches_it_overlaps_with(topic in "[$ab/ü]{1,8}", filter in "[$ab+#/ü]{1,8}") {
            if is_filter(&filter) && matches(&filter, &topic) {
                prop_assert!(overlap(&filter, &topic));
                prop_assert!(overlap(&topic, &filter));
            }
        }
    }
}
