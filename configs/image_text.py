"""Names the places in an image file where texts say how the image was made, for who writes them and who reads them."""

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF's tags

# What promptmill writes of a request, as the attribute `request` of this namespace in XMP; the keyword that readers give it.
XMP_NAMESPACE, REQUEST_TEXT = "urn:promptmill:image", "promptmill"
# Carried columns of rows that pictures make: the tool that made the picture, and its parameters that became no column, as JSON.
TOOL, UNREAD = "picture_tool", "picture_unread"
LEFT_OUT = '{"promptmill": 1, "left_out": true}'  # in place of a request that does not fit into a JPEG
