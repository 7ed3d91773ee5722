//! Where a test makes a transaction fail, for both backends alike.

use octavius_failpoint::{STORE_COMMIT, STORE_COMMIT_DONE, is_lost, reach};

use crate::api::{Commit, StoreError};

/// Makes a transaction, unless a test wants it otherwise.
pub(crate) async fn commit(work: impl Future<Output = Result<Commit, StoreError>>) -> Result<Commit, StoreError> {
    reach(&STORE_COMMIT);
    let answer = work.await?;
    match answer {
        Commit::Done(_) if is_lost(&STORE_COMMIT_DONE) => Err(StoreError::Unknown("a test has dropped it".to_owned())),
        answer => Ok(answer),
    }
}
