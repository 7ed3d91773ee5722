//! The page over a controller that is faked at its RPCs.
