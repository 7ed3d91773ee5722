//! Randomness from the operating system, for nonces and tokens.

/// 32 random bytes.
pub(crate) fn bytes() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    #[expect(
        clippy::expect_used,
        reason = "without the operating system's randomness no token would be safe; Linux always has it"
    )]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A random number.
pub(crate) fn number() -> u64 {
    let bytes = bytes();
    u64::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}
