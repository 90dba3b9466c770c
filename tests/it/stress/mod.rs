//! Many faults at random, and many pools in a row.

mod chaos;
