use octavius_core::log::Times;
use octavius_store::{EmbeddedOptions, open_embedded};

use super::object::{PART_BYTES, untimed};
use super::*;

fn place() -> (tempfile::TempDir, Archive) {
    let place = tempfile::tempdir().unwrap();
    let archive = Archive::open(place.path().join("archive").to_str().unwrap()).unwrap();
    (place, archive)
}

fn id(number: u128) -> ExecutionId {
    ExecutionId::from_bits(number)
}

fn files(folder: &FilePath) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

#[tokio::test]
async fn what_was_put_is_read_from_any_place() {
    let (_place, archive) = place();
    let data: Vec<u8> = (0..6 * PART_BYTES + 1000).map(|at| (at % 253) as u8).collect();
    let piece = Piece { data: data.clone().into(), times: Times::all_at(77) };
    let object = archive.put(id(1), 2, 10_000, piece).await.unwrap();
    assert_eq!((object.offset, object.size, object.printed), (10_000, data.len() as u64, Some((77, 77))));
    for skip in [0, 1, PART_BYTES - 1, PART_BYTES, 5 * PART_BYTES + 3, data.len() - 1] {
        let (mut at, mut read) = (10_000 + skip as u64, Vec::new());
        while at < object.end() {
            let (begins, piece) = archive.read(id(1), 2, &object, at).await.unwrap();
            assert_eq!(begins, at);
            assert!(piece.data.len() <= usize::try_from(READ_BYTES).unwrap() && !piece.data.is_empty());
            assert_eq!(piece.times, Times::all_at(77));
            at += piece.size();
            read.extend_from_slice(&piece.data);
        }
        assert!(read == data[skip..], "from {skip}");
    }
    assert_eq!(archive.read(id(1), 2, &object, object.end()).await.unwrap().1, Piece::default());
}

#[tokio::test]
async fn damage_is_told_and_nothing_of_it_is_returned() {
    let (place, archive) = place();
    let object = archive.put(id(1), 1, 0, untimed(b"some bytes")).await.unwrap();
    let file = files(&place.path().join("archive")).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 0x40;
    for (bytes, expected) in [(&flipped[..], "is damaged"), (&whole[..5], "is damaged"), (b"", "is damaged")] {
        std::fs::write(&file, bytes).unwrap();
        let told = archive.read(id(1), 1, &object, 0).await.unwrap_err().to_string();
        assert!(told.contains(expected) && told.contains("log/"), "{told}");
        assert!(!archive.is_down(), "a damaged object is no fault of the archive's");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(archive.read(id(1), 1, &object, 0).await, Err(ArchiveError::Missing { .. })));
    archive.remove_object(id(1), 1, &object).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_of_what_was_removed() {
    let (place, archive) = place();
    for (execution, attempt, offset) in [(1, 1, 0), (1, 1, 9), (1, 2, 0), (2, 1, 0)] {
        archive.put(id(execution), attempt, offset, untimed(b"x")).await.unwrap();
    }
    archive.remove(id(1)).await.unwrap();
    archive.remove(id(1)).await.unwrap();
    let left = files(&place.path().join("archive"));
    assert!(left.len() == 1 && left[0].to_str().unwrap().contains(&id(2).to_string()), "{left:?}");
}

#[tokio::test]
async fn an_archive_is_one_stores_and_a_store_has_one_archive() {
    let (place, archive) = place();
    let store = open_embedded(&place.path().join("store"), EmbeddedOptions::default()).unwrap();
    Archive::check_absent(&*store).await.unwrap();
    archive.claim(&*store, "one").await.unwrap();
    archive.claim(&*store, "one").await.unwrap();
    let told = |error: ArchiveError| error.to_string();
    let without = told(Archive::check_absent(&*store).await.unwrap_err());
    assert!(without.contains(archive.url()), "{without}");
    let other = Archive::open(place.path().join("other").to_str().unwrap()).unwrap();
    let empty = told(other.claim(&*store, "one").await.unwrap_err());
    assert!(empty.contains(archive.url()), "{empty}");
    // A folder of the same name on another machine, that a controller of the same store has marked at the same time.
    other.mark("one").await.unwrap();
    let same = told(other.claim(&*store, "one").await.unwrap_err());
    assert!(same.contains(archive.url()), "{same}");
    let second = open_embedded(&place.path().join("second"), EmbeddedOptions::default()).unwrap();
    let foreign = told(archive.claim(&*second, "two").await.unwrap_err());
    assert!(foreign.contains("names one, the store is two"), "{foreign}");
    assert!(second.get(&key::archive()).await.unwrap().is_none());
}

#[test]
fn an_address_that_cannot_be_used_is_told() {
    let told = Archive::open("gs://bucket/x").unwrap_err().to_string();
    assert_eq!(told, "the archive gs://bucket/x cannot be used: gs: is not known; a folder, or s3://BUCKET/PREFIX");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Archive::open(file.path().to_str().unwrap()), Err(ArchiveError::Address { .. })));
}
