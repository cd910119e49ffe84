//! The guest IOMMU as a library.
