"""Annotations of every data set, made up for the tests, and what they say."""

import json
from pathlib import Path

UCF101 = {
    "classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n3 YoYo\r\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c02.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g01_c01.avi 2\r\n",
    "testlist01.txt": "Archery/v_Archery_g01_c07.avi\r\n",
    "trainlist02.txt": "Archery/v_Archery_g01_c07.avi 1\n",
    "testlist02.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\n",
}
HMDB51 = {
    "wave_test_split1.txt": "Kid_#1!_wave_u_cm.avi 1 \n(Big)_&_[Small]_wave_u_cm.avi 2 \n",
    "wave_test_split2.txt": "Kid_#1!_wave_u_cm.avi 0 \n(Big)_&_[Small]_wave_u_cm.avi 1 \n",
    "shake_hands_test_split1.txt": "Two_men_shake_hands_f.avi 0 \nNew_shake_hands_f.avi 1 \n",
    "shake_hands_test_split2.txt": "Two_men_shake_hands_f.avi 2 \nNew_shake_hands_f.avi 0 \n",
    "._wave_test_split1.txt": "what macOS leaves beside a file",
}
SSV2 = {
    "labels.json": json.dumps({"Tilting something, slowly": "1", "Moving something up": "0"}),
    "train.json": json.dumps(
        [
            {"id": "90001", "label": "moving a cup up", "template": "Moving [something] up"},
            {"id": "90002", "label": "", "template": "Tilting [something], slowly"},
        ]
    ),
    "validation.json": json.dumps([{"id": "90003", "template": "Moving [something] up"}]),
    "test.json": json.dumps([{"id": "90004"}]),
}
DIVING48 = {
    "Diving48_vocab.json": json.dumps([["Back", "15som"], ["Front", "Dive"], ["Inward", "Tuck"]]),
    "Diving48_V2_train.json": json.dumps(
        [{"vid_name": "-aB3dE5_00012", "label": 2, "start_frame": 0, "end_frame": 96}]
    ),
    "Diving48_V2_test.json": json.dumps([{"vid_name": "_x0000000_00001", "label": 2}]),
    "Diving48_train.json": json.dumps([{"vid_name": "-aB3dE5_00012", "label": 1}]),
}
KINETICS = {
    "train.csv": "label,youtube_id,time_start,time_end,split,is_cc\n"
    '"tap dancing",abCDefGH123,14,24,train,0\n"crying, loudly",-bCDefGH123,0,10,train,1\n',
    "val.csv": "split,time_end,time_start,youtube_id,label\n"
    "val,1010.0,1000,xyCDefGH123,tap dancing\n",
    "test.csv": "youtube_id,time_start,time_end,split\nzzCDefGH123,1,11,test\n",
}
TREES = {
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "ssv2": SSV2,
    "diving48": DIVING48,
    "kinetics400": KINETICS,
}
ROWS = {  # (video, class, split) of split 1
    "ucf101": [
        ("Archery/v_Archery_g08_c02.avi", "Archery", "train"),
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups", "train"),
        ("Archery/v_Archery_g01_c07.avi", "Archery", "test"),
    ],
    "hmdb51": [
        ("shake_hands/Two_men_shake_hands_f.avi", "shake_hands", ""),
        ("shake_hands/New_shake_hands_f.avi", "shake_hands", "train"),
        ("wave/Kid_#1!_wave_u_cm.avi", "wave", "train"),
        ("wave/(Big)_&_[Small]_wave_u_cm.avi", "wave", "test"),
    ],
    "ssv2": [
        ("90001", "Moving something up", "train"),
        ("90002", "Tilting something, slowly", "train"),
        ("90003", "Moving something up", "test"),
    ],
    "diving48": [
        ("-aB3dE5_00012", "Inward Tuck", "train"),
        ("_x0000000_00001", "Inward Tuck", "test"),
    ],
    "kinetics400": [
        ("abCDefGH123_000014_000024", "tap dancing", "train"),
        ("-bCDefGH123_000000_000010", "crying, loudly", "train"),
        ("xyCDefGH123_001000_001010", "tap dancing", "test"),
    ],
}
CLASSES = {
    "ucf101": ["Archery", "HandstandPushups", "YoYo"],
    "hmdb51": ["shake_hands", "wave"],
    "ssv2": ["Moving something up", "Tilting something, slowly"],
    "diving48": ["Back 15som", "Front Dive", "Inward Tuck"],
    "kinetics400": ["crying, loudly", "tap dancing"],
}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Writes files with these texts.

    Args:
        folder: Where; it is made if it is not there.
        files: Text by name.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, newline="")
    return folder
