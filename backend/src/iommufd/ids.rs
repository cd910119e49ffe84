//! Ids of devices, by which iommufd makes tables for their IOMMUs.
//!
//! Only who binds a device is told its id. Of devices that a VMM has bound we know the ids, and not whose
//! they are: one is tried after the other.

use crate::HostError;

/// No id to try.
const UNBOUND: HostError = HostError::Unsupported("a device that nobody has bound");

/// The ids to try, each once: `known` first, then all others that are `bound`, for `known` may be another
/// device's, which the VMM has let go since.
pub(super) fn candidates(known: Option<u32>, bound: &[u32]) -> impl Iterator<Item = u32> {
    let others = bound.iter().copied().filter(move |id| known != Some(*id));
    known.into_iter().chain(others)
}

/// Tries `make` with each id until one succeeds; which, and what was made.
///
/// # Errors
/// What was said first that is more than that an id is of another IOMMU; else that, or that there is no id.
pub(super) fn first_that<T>(
    ids: impl Iterator<Item = u32>,
    mut make: impl FnMut(u32) -> Result<T, HostError>,
) -> Result<(u32, T), HostError> {
    let mut told: Option<HostError> = None;
    for id in ids {
        match make(id) {
            Ok(made) => return Ok((id, made)),
            Err(error) if told.as_ref().is_none_or(is_of_another) => told = Some(error),
            Err(_) => {}
        }
    }
    Err(told.unwrap_or(UNBOUND))
}

/// Whether the kernel has said only that a device is not behind that IOMMU.
fn is_of_another(error: &HostError) -> bool {
    match error {
        HostError::Refused { source, .. } => source.raw_os_error() == Some(libc::EINVAL),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io;

    fn refused(source: io::Error) -> HostError {
        HostError::Refused { call: "HWPT_ALLOC", source }
    }

    #[test]
    fn an_id_that_is_refused_does_not_end_the_search() {
        let mut tried = Vec::new();
        let found = first_that(1..9, |id| {
            tried.push(id);
            let error = refused(io::ErrorKind::OutOfMemory.into());
            if id < 3 { Err(error) } else { Ok(id * 10) }
        });
        assert_eq!((found.unwrap(), tried), ((3, 30), vec![1, 2, 3]));
    }

    #[test]
    fn an_id_that_served_once_is_tried_first_and_is_not_the_only_one() {
        assert_eq!(candidates(Some(4), &[2, 4, 6]).collect::<Vec<_>>(), [4, 2, 6]);
        assert_eq!(candidates(None, &[2, 4, 6]).collect::<Vec<_>>(), [2, 4, 6]);
        assert_eq!(candidates(Some(4), &[]).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn another_iommus_id_hides_no_lack_of_memory() {
        let other = || refused(io::Error::from_raw_os_error(libc::EINVAL));
        for short in 1..4 {
            let all = first_that(1..4, |id| -> Result<u32, _> {
                Err(if id == short { HostError::OutOfMappings } else { other() })
            });
            assert!(matches!(all, Err(HostError::OutOfMappings)), "{all:?}");
        }
        let told = first_that(1..4, |_| -> Result<u32, _> { Err(other()) }).unwrap_err();
        assert_eq!(told.to_string(), other().to_string());
    }

    #[test]
    fn where_all_are_refused_the_first_refusal_is_told() {
        let all = first_that(5..9, |id| -> Result<u32, _> {
            Err(refused(io::Error::other(id.to_string())))
        });
        assert_eq!(all.unwrap_err().to_string(), "HWPT_ALLOC: 5");
        let none = first_that([].into_iter(), Ok);
        assert_eq!(none.unwrap_err().to_string(), UNBOUND.to_string());
    }
}
