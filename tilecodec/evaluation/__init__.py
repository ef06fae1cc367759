"""Rate and quality on anyone's pictures: our codec beside JPEG, JPEG 2000, WebP, AVIF and JPEG XL."""
