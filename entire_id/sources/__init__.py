"""Raw crops → an iterator of `Sample | Rejected`. One module per naming family."""
