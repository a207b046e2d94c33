//! How much fits into an answer. Pure.
//!
//! The numbers of samples, gaps and commands in an answer are bounded, but not how large each is: a sample may have 64
//! metrics, a command what its device told of it. So a list ends, and goes on by its cursor, when it has become large.

use std::io;

use serde::Serialize;

/// Bytes of JSON that an answer lists; one element more may be in it, so that every answer gets on. An MCP answer holds it twice, as
/// text and as structured content, and a Lambda's may have 5 MiB.
pub(super) const ANSWER_BYTES_MAX: usize = 1_000_000;

/// The room that is left.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
    empty: bool,
}

impl Room {
    /// All of it.
    pub(super) fn new() -> Self {
        Self { left: ANSWER_BYTES_MAX, empty: true }
    }

    /// Takes the room for one more element; `false` if there is none. The first one always fits.
    pub(super) fn takes(&mut self, element: &impl Serialize) -> bool {
        let bytes = size_of(element);
        if bytes > self.left && !self.empty {
            return false;
        }
        self.left = self.left.saturating_sub(bytes);
        self.empty = false;
        true
    }
}

/// Bytes as JSON, the comma included.
fn size_of(element: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(1);
    // What cannot be written is not in the answer either.
    let _ = serde_json::to_writer(&mut count, element);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_ends_at_its_size_and_one_element_always_fits() {
        let mut room = Room::new();
        let element = json!({"a": "x".repeat(999)});
        let taken = (0..10_000).take_while(|_| room.takes(&element)).count();
        assert_eq!(taken, ANSWER_BYTES_MAX / (element.to_string().len() + 1));
        assert!(Room::new().takes(&"x".repeat(2 * ANSWER_BYTES_MAX)));
    }
}
