"""From a receipt and a countersignature to a verdict and its postings."""
