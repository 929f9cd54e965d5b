//! Many operations or answers in as few messages as will be read.

use prost::Message;

/// Bytes after which a message is full; it may be larger by one item, whose own limit keeps it
/// below [`crate::transport::MAX_MESSAGE_BYTES`].
const FULL_BYTES: usize = 2 * 1024 * 1024;

/// Items, in order, as messages hold them.
pub fn pack<M: Message>(items: Vec<M>) -> Vec<Vec<M>> {
    let mut packed = Vec::new();
    let mut message = Vec::with_capacity(items.len());
    let mut size = 0;
    for item in items {
        size += item.encoded_len();
        message.push(item);
        if size >= FULL_BYTES {
            packed.push(std::mem::take(&mut message));
            size = 0;
        }
    }
    if !message.is_empty() {
        packed.push(message);
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ScanItem;

    #[test]
    fn items_keep_their_order_and_messages_their_bound() {
        let item = |length: usize| ScanItem { key: vec![1; length].into(), ..Default::default() };
        let sizes = [10, 3 << 20, 20, 1 << 20, 1 << 20, 30];
        let packed = pack(sizes.into_iter().map(item).collect());
        let lengths: Vec<Vec<usize>> = packed
            .iter()
            .map(|message| message.iter().map(|item| item.key.len()).collect())
            .collect();
        assert_eq!(lengths, [vec![10, 3 << 20], vec![20, 1 << 20, 1 << 20], vec![30]]);
        assert!(pack::<ScanItem>(vec![]).is_empty());
    }
}
