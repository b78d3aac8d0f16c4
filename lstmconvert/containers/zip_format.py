"""The records of zip archives, as they are read and written: without the names and extra fields behind them.

Source: PKWARE's APPNOTE 6.3.10 (4.3.7 local headers, 4.3.12 the directory, 4.3.14 to 4.3.16 its end,
4.4.4 flags, 4.5.3 ZIP64).
"""

from __future__ import annotations

import struct

LOCAL = struct.Struct("<4s5H3L2H")
"""Mark, version, flags, method, time, date, CRC-32, sizes stored and unpacked, of name and extra."""
LOCAL_MARK = b"PK\x03\x04"
ENTRY = struct.Struct("<4s6H3L5H2L")
"""As before with the version that wrote it second, and behind it comment, disk, attributes and offset."""
ENTRY_MARK = b"PK\x01\x02"
END = struct.Struct("<4s4H2LH")
END_MARK = b"PK\x05\x06"
END64 = struct.Struct("<4sQ2H2L4Q")
END64_MARK = b"PK\x06\x06"
END64_LOCATOR = struct.Struct("<4sLQL")
END64_LOCATOR_MARK = b"PK\x06\x07"

UTF8 = 1 << 11
"""The flag of a name that is not in code page 437."""
ZIP64_TAG = 1
"""Tag of the extra field with the sizes and the offset of 64 bits."""
ELSEWHERE, COUNTED_ELSEWHERE = 0xFFFFFFFF, 0xFFFF
"""Say that a size or offset, or the number of members, stands where ZIP64 has it."""
